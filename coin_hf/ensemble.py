"""Run a coded ensemble: the experts that answer, and the missing ones decoded.

Longer than other modules because it is one public class: most lines are the docstrings of its
methods, whose work lies in the rooms below.
"""

import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.erasure.alone import Way, check_answerable, decode_or_alone, ways
from coin_hf.erasure.answers import Names, indices
from coin_hf.erasure.betas import written
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment
from coin_hf.experts.coded_model import as_stored, save_coded
from coin_hf.experts.expert import Expert, read_expert
from coin_hf.experts.heads import columns
from coin_hf.experts.one_dtype import floating_dtype
from coin_hf.experts.recorded import load_all_recorded, recorded_names
from coin_hf.experts.text_preprocessing import preprocessed
from coin_hf.hub.client import locate
from coin_hf.hub.layout import CODED_FILES, coded_folder
from coin_hf.networks.inputs import Inputs, cast
from coin_hf.networks.logits import call
from coin_hf.records.coin import ClassOrder, CoinRecord
from coin_hf.reports.result import Result
from coin_hf.repository.fisher_files import fisher_path, write_fisher
from coin_hf.repository.fisher_origin import draws_of, fisher_metadata
from coin_hf.repository.folder import read_records, write_repository
from coin_hf.repository.push import push_folder


class CodedEnsemble:
    """N experts, M coded models, and the code between them.

        fhat_i(x) = (f_c(x) - sum_{j != i} beta_j f_j(x)) / beta_i      one missing, M = 1

    Created by `coin_hf.encode` or loaded by `from_pretrained`.

    Example:
        ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
        logits = ensemble(x, missing=["high"])  # list of N tensors (B, K), one of them decoded
    """

    def __init__(
        self,
        coded: Sequence[Expert],
        code: ErasureCode,
        coin: CoinRecord,
        result: Result,
        experts: Sequence[Expert] | None = None,
        fishers: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Store the parts; use `encode` or `from_pretrained` to get an ensemble.

        Args:
            coded: The M coded models, with their preprocessing and label names.
            code: The erasure code.
            coin: The content of `coin.json`.
            result: The content of `result.json`.
            experts: The experts, in order, if loaded.
            fishers: The experts' Fishers, to save with the coded models.
        """
        self.coded_models = tuple(coded)
        self.code = code
        self.coin = coin
        self.result = result
        self.experts = None if experts is None else tuple(experts)
        self.fishers = fishers

    @property
    def names(self) -> list[str]:
        """The experts' names, in order."""
        return [expert.name for expert in self.coin.experts]

    @property
    def label_names(self) -> list[tuple[str, ...] | None]:
        """The class names of each expert's answers, in the order of its own classes.

        Without the experts, the coded model's, whose names join those of all experts.
        """
        if self.experts is not None:
            return [expert.own_names for expert in self.experts]
        return [recorded_names(expert, self.coded.label_names) for expert in self.coin.experts]

    def __repr__(self) -> str:
        """Show the experts and betas."""
        loaded = "loaded" if self.experts else "not loaded"
        betas = written(self.code.rows)
        return f"CodedEnsemble({', '.join(self.names)}; betas={betas}; experts {loaded})"

    def _repr_html_(self) -> str:
        """Show the experts, an erasure and the NDA table in a notebook."""
        return f"<code>{html.escape(repr(self))}</code>{self.result._repr_html_()}"

    @property
    def coded(self) -> Expert:
        """The first coded model, which plain loaders find at the repository's root."""
        return self.coded_models[0]

    @property
    def model(self) -> nn.Module:
        """The network of the first coded model."""
        return self.coded.model

    def preprocess(self, x: Any) -> Any:
        """Preprocess an image or a text as the experts do.

        Args:
            x: A PIL image, a text, a pair of texts as a tuple, or a list of any of these.

        Returns:
            The networks' input without batch axis: a tensor (C, H, W), or a mapping of tensors
            (T,), the text cut to what tokenizer and network take. For a list a batch, shape
            (B, ...), texts padded to the longest.
        """
        return preprocessed(self.coded.preprocessing, x)

    def to(self, device: torch.device | str) -> "CodedEnsemble":
        """Move coded models and experts to a device and return the ensemble."""
        for expert in (*self.coded_models, *(self.experts or ())):
            expert.model.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        x: Inputs,
        missing: Names = (),
        *,
        coded: Sequence[int] | None = None,
        alone: bool = False,
    ) -> list[Tensor]:
        """Return the logits of all experts without running the missing ones.

        Args:
            x: Preprocessed inputs, shape (B, ...), on the networks' device.
            missing: The missing experts, by name or index, at most M of those that share a label.
            coded: Indices of the coded models to run, at least as many as experts are missing; by
                default all. Surplus answers are weighted by their coding losses.
            alone: Answer with a coded model alone for the missing experts that cannot be decoded;
                `how` says which these are. Of their logits use the argmax alone: they estimate
                sum_j beta_j f_j, not f_i.

        Returns:
            N tensors of logits (B, K_i), decoded for the missing experts, each of its expert's own
            classes in their order (`label_names`). If none is missing, no coded model runs.

        Raises:
            InputError: If the experts are not loaded.
            ValueError: If a name or index is unknown, or more experts are missing than coded
                models can replace.
        """
        experts, lost = self._loaded(), self._numbers(missing)
        used = self._coded_numbers(coded)
        check_answerable(self.code, lost, used, alone=alone)
        x = self._cast(x)
        answers = {i: call(e.model, x) for i, e in enumerate(experts) if i not in lost}
        return self._decoded(answers, self.coded_logits(x, used) if lost else {})

    def how(self, missing: Names = (), *, coded: Sequence[int] | None = None) -> dict[str, Way]:
        """Say how each expert is answered for where some are missing; no network runs.

        Args:
            missing: The missing experts, by name or index.
            coded: Indices of the coded models that answer; by default all.

        Returns:
            By name: `expert`, its own answer; `decoded`; or `alone` where too many experts are
            missing to decode it: a coded model's own logits with `alone=True`, an error without.

        Raises:
            ValueError: If a name or index is unknown, or experts are missing and no coded model
                answers.

        Example:
            ensemble.how(["low", "high"])  # {'low': 'alone', 'high': 'alone'} for M = 1
        """
        lost, used = self._numbers(missing), self._coded_numbers(coded)
        check_answerable(self.code, lost, used, alone=True)
        return dict(zip(self.names, ways(self.code, lost, used), strict=True))

    @torch.no_grad()
    def coded_logits(self, x: Inputs, coded: Sequence[int] | None = None) -> dict[int, Tensor]:
        """Run the coded models, for `decode` when the experts run elsewhere.

        Args:
            x: Preprocessed inputs, shape (B, ...), on the networks' device.
            coded: Indices of the coded models to run; by default all.

        Returns:
            Logits (B, K) by index of the coded model, for `decode`.

        Raises:
            ValueError: If there is no such coded model.
        """
        x = self._cast(x)
        return {c: call(self.coded_models[c].model, x) for c in self._coded_numbers(coded)}

    def decode(
        self,
        answers: Mapping[int | str, Tensor],
        coded: Mapping[int, Tensor],
        *,
        alone: bool = False,
    ) -> list[Tensor]:
        """Decode the missing answers from those that arrived.

        Args:
            answers: Logits (B, K_i) of the experts that answered, by name or index, each in the
                order of its own classes, as its repository numbers them.
            coded: Logits of coded models by index, from `coded_logits`.
            alone: Take a coded model's own for those that cannot be decoded, as when calling the
                ensemble.

        Returns:
            N tensors of logits (B, K_i), in the experts' order, each in that of its own classes.

        Raises:
            ValueError: If a name or index is unknown, or too few answers arrived.

        Example:
            answers = {"low": logits_from_a_server}  # raw logits; "high" did not answer
            low, high = ensemble.decode(answers, ensemble.coded_logits(x))
        """
        came = {self._numbers([who])[0]: logits for who, logits in answers.items()}
        lost = [i for i in range(len(self.names)) if i not in came]
        check_answerable(self.code, lost, list(coded), alone=alone)
        rows = {i: columns(logits, self._orders[i], "own") for i, logits in came.items()}
        return self._decoded(rows, coded)

    def needs(self, expert: int | str) -> list[str]:
        """Say whose answers decoding an expert takes, besides a coded model's.

        Args:
            expert: The missing expert, by name or index.

        Returns:
            The names of the experts that share a label with it; empty if a coded model alone
            answers for it.

        Raises:
            ValueError: If there is no such expert.
        """
        [number] = self._numbers([expert])
        sets, others = self.code.labels, range(len(self.names))
        found = [j for j in others if j != number] if sets is None else sets.sharing(number)
        return [self.names[j] for j in found]

    @torch.no_grad()
    def suspect(self, x: Inputs) -> Tensor:
        """Run all experts and coded models and check their answers against each other.

        Args:
            x: Preprocessed inputs, shape (B, ...), on the networks' device.

        Returns:
            Shape (B,): true where the parity residual exceeds the threshold calibrated on the
            samples. Some answer, an expert's or a coded model's, is then corrupted; which one is
            unknown.

        Raises:
            InputError: If the experts are not loaded or the coded models not calibrated.
        """
        experts = self._loaded()
        if self.coin.calibration is None:
            raise InputError(
                "this coded model has no calibrated threshold, it was re-coded without data: run "
                "`coin-hf evaluate FOLDER --save` on it"
            )
        x = self._cast(x)
        answers = {i: call(expert.model, x) for i, expert in enumerate(experts)}
        residual = self.code.residual(answers, self.coded_logits(x))
        return residual > self.coin.calibration.threshold

    @property
    def _orders(self) -> list[ClassOrder | None]:
        """The order of each expert's own classes, None where it is that of the rows."""
        return [expert.class_order for expert in self.coin.experts]

    def _decoded(self, rows: Mapping[int, Tensor], coded: Mapping[int, Tensor]) -> list[Tensor]:
        """Answer for the missing; return all, each in the order of its expert's own classes."""
        every = {**rows, **decode_or_alone(self.code, rows, coded)}
        return [columns(every[i], order, "rows") for i, order in enumerate(self._orders)]

    def _loaded(self) -> tuple[Expert, ...]:
        if self.experts is None:
            raise InputError(
                "the experts are not loaded: use from_pretrained(..., experts=True), or "
                "`ensemble.decode` for answers that come from elsewhere"
            )
        return self.experts

    def _cast(self, x: Inputs) -> Any:
        """Cast images to the networks' dtype: transforms do not support half precision."""
        return cast(x, next(self.model.parameters()).dtype)

    def _numbers(self, who: Names) -> list[int]:
        """Map experts' names to unique indices, ascending."""
        return indices("expert", who, len(self.names), self.names)

    def _coded_numbers(self, numbers: Sequence[int] | None) -> list[int]:
        """Check coded models' indices; None means all."""
        count = len(self.coded_models)
        return list(range(count)) if numbers is None else indices("coded model", numbers, count)

    def _write(self, folder: Path) -> None:
        """Write the networks and any Fishers; `write_repository` writes the rest."""
        save_coded(folder, self.coded_models)
        for expert, record, fisher in zip(
            self.experts or (), self.coin.experts, self.fishers or (), strict=False
        ):
            metadata = fisher_metadata(
                model=record.model,
                revision=record.revision,
                draws=draws_of(self.coin),
                estimator=self.coin.fisher,
                versions=self.coin.versions,
                tied=expert.tied,
                class_order=expert.class_order,
            )
            write_fisher(folder / fisher_path(expert.name), as_stored(expert, fisher), metadata)

    @property
    def _record(self) -> CoinRecord:
        """The content of `coin.json`, with `fisher.save` off if there are no Fishers."""
        if self.fishers:
            return self.coin
        unsaved = self.coin.fisher.model_copy(update={"save": False})
        return self.coin.model_copy(update={"fisher": unsaved})

    def save_pretrained(
        self, folder: str | Path, *, overwrite: bool = False, handler: bool = False
    ) -> None:
        """Write the coded repository: weights, `coin.json`, `result.json`, card and figure.

        The folder is written completely or not at all. Local experts and datasets are recorded
        relative to it.

        Args:
            folder: Output folder; must be empty or not exist.
            overwrite: Replace an existing coded repository.
            handler: Also write `handler.py` and `requirements.txt`, by which Inference Endpoints
                serve one of its networks each, without coin-hf.

        Raises:
            InputError: If the folder is in use, or the disk is full.
        """
        write_repository(
            Path(folder), self._write, self._record, self.result,
            overwrite=overwrite, handler=handler,
        )  # fmt: skip

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Add coded model",
        token: str | None = None,
        handler: bool = False,
    ) -> str:
        """Push the coded repository to the Hub, creating the Hub repository if needed.

        Args:
            repo_id: Hub id.
            private: Make a new repository private.
            revision: Branch to commit to, created if needed; by default main.
            create_pr: Open a pull request instead.
            commit_message: First line of the commit.
            token: Token with write access; by default the saved login.
            handler: Also push `handler.py` and `requirements.txt`, as `save_pretrained` does.

        Returns:
            Address of the commit or pull request.

        Raises:
            InputError: If the Hub cannot be reached or refuses the commit.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "coded"
            write_repository(folder, self._write, self._record, self.result, overwrite=False)
            return push_folder(
                folder,
                repo_id,
                private=private,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                token=token,
                handler=handler,
            )

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | Path,
        revision: str | None = None,
        *,
        experts: bool | Sequence[str] = False,
        device: torch.device | str | None = None,
        on_disk: bool = False,
    ) -> "CodedEnsemble":
        """Load a coded repository from a folder or the Hub.

        Args:
            repo_or_path: Folder or Hub id.
            revision: Branch, tag or commit on the Hub; None for the newest.
            experts: Load the experts too, from the locations and revisions in `coin.json`; or a
                list of their present Hub ids or folders, in order.
            device: Device of the networks; by default the CPU.
            on_disk: Keep the experts' weights in mapped temporary files, so that on the CPU they
                take memory while they run.

        Returns:
            The ensemble.

        Raises:
            InputError: If the repository or an expert cannot be found or read, or they do not
                match.
        """
        repo = str(repo_or_path)
        folder = locate(repo, revision, CODED_FILES)
        coin, result = read_records(folder, repo)
        losses = None if coin.calibration is None else coin.calibration.losses
        code = ErasureCode(coin.recipe.coding_weights, losses=losses, labels=coin.label_sets)
        coded = [
            read_expert(
                folder / coded_folder(c),
                repo=repo,
                revision="",
                library=coin.library,
                device=device,
                name=f"coded model {c}" if c else "coded model",
            )
            for c in range(code.num_coded)
        ]
        loaded = None
        if experts is not False:
            names, dtype = coded[0].label_names, floating_dtype(coded[0])
            loaded = load_all_recorded(
                coin.experts, names, dtype, device=device, where=experts, on_disk=on_disk
            )
        check_alignment([*coded, *(loaded or ())])
        return cls(coded, code, coin, result, loaded)

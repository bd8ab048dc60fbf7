"""The coded ensemble: coded models, code and, when asked for, the experts."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from coin_hf.erasure.betas import written
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment
from coin_hf.experts.coded_model import as_stored, save_coded
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.hub.client import fetch, pin
from coin_hf.hub.layout import CODED_FILES, coded_folder
from coin_hf.networks.logits import call
from coin_hf.repository.fisher_files import draws_of, fisher_metadata, fisher_path, write_fisher
from coin_hf.repository.folder import push_folder, read_repository, write_repository
from coin_hf.repository.records import recipe_of


class CodedEnsemble:
    """N experts, M coded models, and the code between them.

        fhat_i(x) = (f_c(x) - sum_{j != i} beta_j f_j(x)) / beta_i      one missing, M = 1

    Made by `coin_hf.encode`, or read back by `from_pretrained`.

    Example:
        ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
        logits = ensemble(x, missing=[1])  # list of N tensors (B, K), the second one decoded
    """

    def __init__(
        self,
        coded: Sequence[Expert],
        code: ErasureCode,
        coin: dict[str, Any],
        result: dict[str, Any],
        experts: Sequence[Expert] | None = None,
        fishers: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Hold what was made or read; use `encode` or `from_pretrained` to get one.

        Args:
            coded: The M coded models, with their preprocessing and label names.
            code: The erasure code.
            coin: The content of `coin.json`.
            result: The content of `result.json`.
            experts: The experts, in order, if loaded.
            fishers: The experts' Fishers, to be saved with the coded models.
        """
        self.coded_models = tuple(coded)
        self.code = code
        self.coin = coin
        self.result = result
        self.experts = None if experts is None else tuple(experts)
        self.fishers = fishers

    def __repr__(self) -> str:
        """Name the experts."""
        names = ", ".join(expert["name"] for expert in self.coin["experts"])
        loaded = "loaded" if self.experts else "not loaded"
        return f"CodedEnsemble({names}; betas={written(self.code.rows)}; experts {loaded})"

    @property
    def coded(self) -> Expert:
        """The first coded model: the one that plain loaders find in its repository."""
        return self.coded_models[0]

    @property
    def model(self) -> nn.Module:
        """The network of the first coded model."""
        return self.coded.model

    def preprocess(self, image: PIL.Image.Image) -> Tensor:
        """Turn an image into the networks' input, shape (C, H, W), by the experts' own rules."""
        return self.coded.preprocessing(image)

    def to(self, device: torch.device | str) -> "CodedEnsemble":
        """Move coded models and experts to a device and return the ensemble."""
        for expert in (*self.coded_models, *(self.experts or ())):
            expert.model.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, x: Tensor, missing: Sequence[int] = (), *, coded: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Answer for all experts, without running the missing ones.

        Args:
            x: Preprocessed images, shape (B, C, H, W), on the networks' device.
            missing: Numbers of the experts that do not answer, at most M.
            coded: Numbers of the coded models to run, at least as many as are missing; by default
                all, and answers that are more than needed are weighted by their quality.

        Returns:
            N tensors of logits (B, K), the missing ones' decoded. With nothing missing no coded
            model is run.

        Raises:
            InputError: If the experts were not loaded.
            ValueError: If a number is out of range or more experts are missing than coded models
                can replace.
        """
        experts = self._loaded()
        n, m = len(experts), len(self.coded_models)
        there = range(m) if coded is None else sorted(set(coded))
        for what, numbers, size in (("expert", missing, n), ("coded model", there, m)):
            for number in numbers:
                if not 0 <= number < size:
                    raise ValueError(
                        f"there is no {what} {number}: they are numbered 0 to {size - 1}"
                    )
        if len(set(missing)) > len(there):
            few = "one coded model replaces one"
            if len(there) != 1:
                few = f"{len(there)} coded models replace {len(there)}"
            raise ValueError(f"experts {sorted(set(missing))} are missing, but {few}")
        x = x.to(next(self.model.parameters()).dtype)  # transforms know no half precision
        answers = {i: call(expert.model, x) for i, expert in enumerate(experts) if i not in missing}
        answers |= self.code.decode(answers, self._coded_answers(x, there) if missing else {})
        return [answers[i] for i in range(n)]

    @torch.no_grad()
    def suspect(self, x: Tensor) -> Tensor:
        """Run all experts and coded models, and check the answers against each other.

        Args:
            x: Preprocessed images, shape (B, C, H, W), on the networks' device.

        Returns:
            Shape (B,): true where the parity residual lies above the threshold calibrated on the
            samples, so that some expert's (or coded model's) answer is corrupted, unknown whose.

        Raises:
            InputError: If the experts were not loaded, or the coded models not calibrated.
        """
        experts = self._loaded()
        calibration = self.coin.get("calibration")
        if calibration is None:
            raise InputError(
                "this coded model has no calibrated threshold, it was re-coded without data: run "
                "`coin-hf evaluate FOLDER --save` on it"
            )
        x = x.to(next(self.model.parameters()).dtype)
        answers = {i: call(expert.model, x) for i, expert in enumerate(experts)}
        coded = self._coded_answers(x, range(len(self.coded_models)))
        return self.code.residual(answers, coded) > calibration["threshold"]

    def _loaded(self) -> tuple[Expert, ...]:
        if self.experts is None:
            raise InputError(
                "the experts are not loaded: use from_pretrained(..., experts=True), or decode "
                "answers you already have with `ensemble.code.decode`"
            )
        return self.experts

    def _coded_answers(self, x: Tensor, numbers: Iterable[int]) -> dict[int, Tensor]:
        return {c: call(self.coded_models[c].model, x) for c in numbers}

    def _write(self, folder: Path) -> None:
        """Write what `write_repository` leaves to us: the networks, and Fishers if kept."""
        save_coded(folder, self.coded_models)
        for expert, block, fisher in zip(
            self.experts or (), self.coin["experts"], self.fishers or (), strict=False
        ):
            metadata = fisher_metadata(
                model=block["model"],
                revision=block["revision"],
                draws=draws_of(self.coin),
                estimator=self.coin["fisher"],
                versions=self.coin["versions"],
                tied=expert.tied,
            )
            write_fisher(folder / fisher_path(expert.name), as_stored(expert, fisher), metadata)

    @property
    def _record(self) -> dict[str, Any]:
        """What `coin.json` will say: Fishers that are not at hand are not saved."""
        if self.fishers:
            return self.coin
        return {**self.coin, "fisher": {**self.coin["fisher"], "save": False}}

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the coded repository: weights, `coin.json`, `result.json`, card and figure.

        The folder appears whole or not at all. Experts and datasets that are folders are
        recorded relative to it.

        Args:
            folder: Where to; must not exist or be empty.
            overwrite: Replace a coded repository that is there.

        Raises:
            InputError: If the folder is in use, or the disk is full.
        """
        write_repository(Path(folder), self._write, self._record, self.result, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Add coded model",
        token: str | None = None,
    ) -> str:
        """Write the coded repository to the Hub; the repository is created if there is none.

        Args:
            repo_id: Hub id.
            private: Create it private.
            revision: Branch to commit to, created if there is none; by default the main one.
            create_pr: Open a pull request instead.
            commit_message: First line of the commit.
            token: A token that may write; by default the one logged in with.

        Returns:
            Address of the commit or pull request.

        Raises:
            InputError: If the Hub cannot be reached or refuses.
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
            )

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | Path,
        revision: str | None = None,
        *,
        experts: bool | Sequence[str] = False,
        device: torch.device | str | None = None,
    ) -> "CodedEnsemble":
        """Read a coded repository from a folder or the Hub.

        Args:
            repo_or_path: Folder or Hub id.
            revision: Branch, tag or commit on the Hub; None for the newest.
            experts: Load the experts too, from where and at the revisions `coin.json` records; or
                the Hub ids or folders where they lie now, in order.
            device: Where the networks go; by default they stay on the CPU.

        Returns:
            The ensemble.

        Raises:
            InputError: If it, or an expert, cannot be found or read, or does not fit.
        """
        repo = str(repo_or_path)
        folder = fetch(repo, pin(repo, revision), CODED_FILES)
        coin, result = read_repository(folder, repo)
        losses = (coin.get("calibration") or {}).get("losses")
        code = ErasureCode(recipe_of(coin).coding_weights, losses=losses)
        coded = [
            load_expert(
                str(folder / coded_folder(c)),
                library=coin["library"],
                device=device,
                name=f"coded model {c}" if c else "coded model",
            )
            for c in range(code.coded)
        ]
        loaded = None
        if experts is not False:
            loaded = _load_experts(coin, experts, device)
        check_alignment([*coded, *(loaded or ())])
        return cls(coded, code, coin, result, loaded)


def _load_experts(
    coin: dict[str, Any], places: bool | Sequence[str], device: torch.device | str | None
) -> list[Expert]:
    """Load the experts that coin.json records, or the same ones from other places."""
    recorded = coin["experts"]
    if isinstance(places, bool):
        return [
            load_expert(
                e["model"],
                revision=e["revision"],
                library=e["library"],
                device=device,
                name=e["name"],
            )
            for e in recorded
        ]
    if len(places) != len(recorded):
        raise InputError(f"expected the places of {len(recorded)} experts, got {len(places)}")
    return [
        load_expert(place, library=e["library"], device=device, name=e["name"])
        for place, e in zip(places, recorded, strict=True)
    ]

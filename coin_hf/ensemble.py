"""The coded ensemble: coded model, code and, when asked for, the experts."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from coin_hf.alignment import check_alignment
from coin_hf.erasure import ErasureCode
from coin_hf.errors import InputError
from coin_hf.experts import FILES, Expert, load_expert
from coin_hf.hub import fetch, pin
from coin_hf.outputs import call
from coin_hf.records import recipe_of
from coin_hf.repository import push_folder, read_repository, write_repository


class CodedEnsemble:
    """N experts, one coded model, and the code between them.

        fhat_i(x) = (f_c(x) - sum_{j != i} beta_j f_j(x)) / beta_i

    Made by `coin_hf.encode`, or read back by `from_pretrained`.

    Example:
        ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
        logits = ensemble(x, missing=[1])  # list of N tensors (B, K), the second one decoded
    """

    def __init__(
        self,
        coded: Expert,
        code: ErasureCode,
        coin: dict[str, Any],
        result: dict[str, Any],
        experts: Sequence[Expert] | None = None,
    ) -> None:
        """Hold what was made or read; use `encode` or `from_pretrained` to get one.

        Args:
            coded: The coded model, with its preprocessing and label names.
            code: The erasure code.
            coin: The content of `coin.json`.
            result: The content of `result.json`.
            experts: The experts, in order, if loaded.
        """
        self.coded = coded
        self.code = code
        self.coin = coin
        self.result = result
        self.experts = None if experts is None else tuple(experts)

    def __repr__(self) -> str:
        """Name the experts."""
        names = ", ".join(expert["name"] for expert in self.coin["experts"])
        loaded = "loaded" if self.experts else "not loaded"
        return f"CodedEnsemble({names}; betas={list(self.code.betas)}; experts {loaded})"

    @property
    def model(self) -> nn.Module:
        """The coded network."""
        return self.coded.model

    def preprocess(self, image: PIL.Image.Image) -> Tensor:
        """Turn an image into the networks' input, shape (C, H, W), by the experts' own rules."""
        return self.coded.preprocessing(image)

    def to(self, device: torch.device | str) -> "CodedEnsemble":
        """Move coded model and experts to a device and return the ensemble."""
        for expert in (self.coded, *(self.experts or ())):
            expert.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor, missing: Sequence[int] = ()) -> list[Tensor]:
        """Answer for all experts, without running the missing one.

        Args:
            x: Preprocessed images, shape (B, C, H, W), on the networks' device.
            missing: Numbers of the experts that do not answer; at most one.

        Returns:
            N tensors of logits (B, K), the missing one's decoded. With nothing missing the coded
            model is not run.

        Raises:
            InputError: If the experts were not loaded.
            ValueError: If a number is out of range or more experts are missing than coded models
                can replace.
        """
        if self.experts is None:
            raise InputError(
                "the experts are not loaded: use from_pretrained(..., experts=True), or decode "
                "answers you already have with `ensemble.code.decode`"
            )
        n = len(self.experts)
        for i in missing:
            if not 0 <= i < n:
                raise ValueError(f"there is no expert {i}: they are numbered 0 to {n - 1}")
        if len(set(missing)) > 1:
            raise ValueError(
                f"experts {sorted(set(missing))} are missing, but one coded model replaces one"
            )
        x = x.to(next(self.model.parameters()).dtype)  # transforms know no half precision
        answers = {
            i: call(expert.model, x) for i, expert in enumerate(self.experts) if i not in missing
        }
        coded = {0: call(self.model, x)} if missing else {}
        answers |= self.code.decode(answers, coded)
        return [answers[i] for i in range(n)]

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
        write_repository(Path(folder), self.coded, self.coin, self.result, overwrite=overwrite)

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
            write_repository(folder, self.coded, self.coin, self.result, overwrite=False)
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
        folder = fetch(repo, pin(repo, revision), [*FILES, "*.json", "*.png"])
        coin, result = read_repository(folder, repo)
        code = ErasureCode(recipe_of(coin).coding_weights)
        coded = load_expert(str(folder), library=coin["library"], device=device, name="coded model")
        loaded = None
        if experts is not False:
            loaded = _load_experts(coin, experts, device)
            check_alignment([coded, *loaded])
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

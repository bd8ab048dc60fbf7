"""Checkpoint partial Fishers on disk, so that a resumed encoding gives the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from coin_hf.errors import InputError
from coin_hf.fisher import Partial
from coin_hf.repository.atomic import whole_file
from coin_hf.repository.tensor_files import write_tensors
from coin_hf.repository.work_folder import claim

DECISIVE = ("experts", "datasets", "samples", "fisher", "dtype")
"""Recipe keys that the Fishers depend on; others may change before a run resumes."""
EVERY = 8
"""Chunks between two writes of the partial sums."""


class FisherCheckpoints:
    """The checkpoint folder of `coin-hf encode --resume`."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Start a folder, or resume an existing one.

        Args:
            folder: Its location.
            recipe: The recipe as plain data, revisions pinned.

        Raises:
            InputError: If it holds the work of another recipe, or something else.
        """
        self.folder = folder
        claim(
            folder,
            {key: recipe[key] for key in DECISIVE if key in recipe},
            "choose another `output`",
        )

    def fisher(self, expert: int, *, rank: int, world: int) -> "FisherFile":
        """Return the checkpoint of one expert's Fisher in one process.

        Args:
            expert: The expert's index.
            rank: The process's rank.
            world: Number of processes; another number starts over.

        Returns:
            The checkpoint.
        """
        return FisherFile(self.folder / f"fisher-{expert}.{rank}-of-{world}.safetensors")


@dataclass
class FisherFile:
    """A `coin_hf.fisher.Checkpoint` in a safetensors file."""

    path: Path
    unsaved: int = 0

    def load(self) -> Partial | None:
        """Read the partial sums.

        Returns:
            The partial sums, or None if there is no file yet.

        Raises:
            InputError: If the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                numbers = {key: int(value) for key, value in file.metadata().items()}
                sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{self.path} is damaged ({error}): remove {self.path.parent} to start over"
            ) from error
        return Partial(numbers["done"], numbers["batch_size"], numbers["block"], sums)

    def save(self, partial: Partial, *, final: bool) -> None:
        """Write the partial sums every `EVERY` chunks and at the end, completely or not at all.

        Args:
            partial: The sums so far.
            final: Whether this was the last chunk.

        Raises:
            InputError: If the disk is full.
        """
        self.unsaved += 1
        if not final and self.unsaved < EVERY:
            return
        self.unsaved = 0
        numbers = ("done", "batch_size", "block")
        try:
            with whole_file(self.path) as draft:
                said = {key: str(getattr(partial, key)) for key in numbers}
                write_tensors(draft, partial.sums, said)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write {self.path}: {error}; free some space and resume"
            ) from error

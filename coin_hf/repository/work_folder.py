"""A run's work folder: partial Fishers, so that a run that was stopped can go on."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from coin_hf.errors import InputError
from coin_hf.fisher import Partial

DECISIVE = ("experts", "datasets", "samples", "fisher")
"""Keys of the recipe on which the Fishers depend; others may change before a run goes on."""
EVERY = 8
"""Chunks between two writes of the partial sums."""


class WorkFolder:
    """The folder that `coin-hf encode --resume` leaves while it works."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Begin one, or go on with the one that is there.

        Args:
            folder: Where it lies.
            recipe: The recipe as plain data, revisions pinned.

        Raises:
            InputError: If it holds the work of another recipe, or something else.
        """
        self.folder = folder
        claim(folder, {key: recipe[key] for key in DECISIVE}, "choose another `output`")

    def fisher(self, expert: int, *, rank: int, world: int) -> "FisherFile":
        """Return the checkpoint of one expert's Fisher in one process.

        Args:
            expert: The expert's number.
            rank: The process's number.
            world: Number of processes; another number begins anew.

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
            What was kept, or None if there is no file yet.

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
                f"{self.path} is damaged ({error}): remove {self.path.parent} to begin anew"
            ) from error
        return Partial(numbers["done"], numbers["batch_size"], numbers["block"], sums)

    def save(self, partial: Partial, *, final: bool) -> None:
        """Write the partial sums, every `EVERY` chunks and at the end; whole or not at all.

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
        draft = self.path.with_suffix(".tmp")
        numbers = ("done", "batch_size", "block")
        try:
            save_file(
                {name: value.cpu() for name, value in partial.sums.items()},
                draft,
                metadata={key: str(getattr(partial, key)) for key in numbers},
            )
            os.replace(draft, self.path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write {self.path}: {error}; free some space and resume"
            ) from error


def claim(folder: Path, decisive: Mapping[str, Any], way_out: str) -> None:
    """Begin a folder of unfinished work, or go on with the one that is there.

    Args:
        folder: Where it lies; its `recipe.json` says what the work is of.
        decisive: The part of the recipe on which the work depends, as plain data.
        way_out: What to do instead where the folder holds something else.

    Raises:
        InputError: If it holds the work of another recipe, or something else.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: {way_out}")
    file = folder / "recipe.json"
    held = list(folder.iterdir()) if folder.is_dir() else []
    if not file.exists() and all(path == _draft(file) for path in held):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(decisive, indent=2) + "\n")
        return
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the work folder {folder} holds no work of coin-hf to go on with: remove it, or "
            f"{way_out}"
        ) from error
    different = first_difference(kept, json.loads(json.dumps(decisive)))
    if different is not None:
        raise InputError(
            f"the work folder {folder} is of another recipe, '{different}' differs: restore "
            "the recipe, or remove the folder to begin anew"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file.
        text: Its content.
    """
    _draft(path).write_text(text, encoding="utf-8")
    os.replace(_draft(path), path)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def first_difference(a: Any, b: Any, place: str = "") -> str | None:
    """Find the first key, in the order of `b`, under which two recipes differ.

    Args:
        a: Plain data.
        b: Plain data.
        place: The path of keys so far.

    Returns:
        The path of the key, or None if they are equal.
    """
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return None if a == b else place
    for key in [*b, *(key for key in a if key not in b)]:
        inner = f"{place}.{key}" if place else str(key)
        if key not in a or key not in b:
            return inner
        if (found := first_difference(a[key], b[key], inner)) is not None:
            return found
    return None

"""Claim a folder of unfinished work for one recipe, so that a stopped run can resume."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coin_hf.errors import InputError
from coin_hf.recipe.text_files import read_json
from coin_hf.repository.atomic import is_draft, write_whole


def claim(folder: Path, decisive: Mapping[str, Any], way_out: str) -> None:
    """Start a folder of unfinished work, or resume an existing one.

    Args:
        folder: The folder; its `recipe.json` identifies the work.
        decisive: The part of the recipe that the work depends on, as plain data.
        way_out: What the message advises if the folder holds something else.

    Raises:
        InputError: If it holds the work of another recipe, or something else.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: {way_out}")
    file = folder / "recipe.json"
    held = list(folder.iterdir()) if folder.is_dir() else []
    if not file.exists() and all(is_draft(path, file) for path in held):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(decisive, indent=2) + "\n")
        return
    try:
        kept = read_json(file, f"{file}", f"{folder} is no folder of unfinished work; {way_out}")
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds something else than results of coin-hf: {way_out}"
        ) from error
    different = first_difference(kept, json.loads(json.dumps(decisive)))
    if different is not None:
        raise InputError(
            f"the checkpoint folder {folder} is of another recipe, '{different}' differs: restore "
            "the recipe, or remove the folder to start over"
        )


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

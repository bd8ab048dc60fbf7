"""Read text and JSON that anyone may have written: regular files, bounded in size and depth."""

import json
from pathlib import Path
from typing import Any

from coin_hf.errors import InputError, reason_of

LARGEST = 64 << 20
"""Bytes of the largest text file that is read: class names and training logs take far less."""
DEEPEST = 100
"""Levels of lists and objects that JSON may be nested in."""


def read_text(path: Path, what: str, way_out: str, *, largest: int = LARGEST) -> str:
    """Read a text file.

    Args:
        path: The file.
        what: What it is, for messages, such as "expert 'low': config.json".
        way_out: What to do if it cannot be read.
        largest: Bytes it may have.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it is no regular file, too large, or not UTF-8.
    """
    if path.exists() and not path.is_file():  # a folder, or a pipe that would never end
        raise InputError(f"{what} is no file: {way_out}")
    try:
        size = path.stat().st_size
        if size > largest:
            raise InputError(f"{what} has {size:,} bytes, more than {largest:,}: {way_out}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{what} cannot be read as text ({reason_of(error)}): {way_out}"
        ) from error


def read_json(path: Path, what: str, way_out: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: The file.
        what: What it is, for messages.
        way_out: What to do if it cannot be read.

    Returns:
        The object.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it cannot be read as text, or as by `parse_json`.
    """
    return parse_json(read_text(path, what, way_out), what, way_out)


def parse_json(text: str | bytes, what: str, way_out: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: The text.
        what: What it is, for messages.
        way_out: What to do if it is something else.

    Returns:
        The object.

    Raises:
        InputError: If it is not JSON, not an object, or nested too deeply.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise InputError(f"{what} is nested more than {DEEPEST} levels deep: {way_out}") from error
    except ValueError as error:
        raise InputError(f"{what} is not JSON ({reason_of(error)}): {way_out}") from error
    if not isinstance(data, dict):
        raise InputError(f"{what} must hold an object, got a list or value: {way_out}")
    if depth(data) > DEEPEST:
        raise InputError(f"{what} is nested more than {DEEPEST} levels deep: {way_out}")
    return data


def depth(data: Any) -> int:
    """Count the levels of lists and mappings, without recursion.

    Args:
        data: Plain data.

    Returns:
        0 for a value that is neither.
    """
    levels, level = 0, [data]
    while level := [each for each in level if isinstance(each, dict | list)]:
        levels += 1
        if levels > DEEPEST:
            break
        level = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
    return levels

"""Convert paths: absolute in memory, relative in a repository, bare on the Hub."""

import os
from collections.abc import Callable
from pathlib import Path

from coin_hf.hub.client import local_folder
from coin_hf.records.coin import CoinRecord


def place_of(path: str) -> str:
    """Return a repository's location, valid from any working directory.

    Args:
        path: A Hub id or a folder.

    Returns:
        The Hub id, or the folder's absolute path.
    """
    folder = local_folder(path)
    return path if folder is None else str(folder.absolute())


def relative_to(folder: Path) -> Callable[[str], str]:
    """Make absolute paths relative to a folder; Hub ids are unchanged.

    Args:
        folder: The folder, absolute.

    Returns:
        Path -> path; relative ones begin with a dot.
    """

    def change(path: str) -> str:
        if not os.path.isabs(path):
            return path
        relative = Path(os.path.relpath(os.path.realpath(path), folder)).as_posix()
        return relative if relative.startswith(".") else f"./{relative}"

    return change


def absolute_in(folder: Path) -> Callable[[str], str]:
    """Undo `relative_to`.

    Args:
        folder: The folder, absolute.

    Returns:
        Path -> path.
    """

    def change(path: str) -> str:
        return os.path.normpath(folder / path) if path.startswith(".") else path

    return change


def bare(path: str) -> str:
    """Keep only the last part of an absolute path: the rest means nothing to others.

    Args:
        path: A Hub id or an absolute path.

    Returns:
        The Hub id, or the name with a leading `./`.
    """
    return f"./{Path(path).name}" if os.path.isabs(path) else path


def local_experts(coin: CoinRecord) -> list[str]:
    """List the experts of a coded repository that are local folders, which others cannot load.

    Args:
        coin: Its record, paths absolute.

    Returns:
        Their names.
    """
    return [expert.name for expert in coin.experts if os.path.isabs(expert.model)]

"""Convert paths: absolute in memory, relative in a repository, bare on the Hub."""

import os
from collections.abc import Callable
from pathlib import Path

from coin_hf.errors import InputError, shown
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


def inside(folder: Path, name: str) -> Callable[[str], str]:
    """Refuse locations outside a repository that comes from the Hub, where others wrote them.

    Args:
        folder: The repository on this machine.
        name: Its Hub id, for messages.

    Returns:
        Path -> the same path, a Hub id or a folder below the repository.
    """

    def change(path: str) -> str:
        is_folder = path.startswith((".", "/", "~", "\\")) or os.path.isabs(path)
        below = Path(os.path.normpath(folder / path)).is_relative_to(folder)
        if (is_folder and not (path.startswith(".") and below)) or path.count("/") > 1 + is_folder:
            raise InputError(
                f"'{name}' names the folder {shown(path)} of this machine as an expert or dataset, "
                "which a repository of the Hub may not: give the experts' places yourself, by "
                "`from_pretrained(..., experts=[...])`"
            )
        return path

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
    return [
        expert.name
        for expert in coin.experts
        if os.path.isabs(expert.model) or os.path.isabs(expert.base or "")
    ]

"""Write files and folders completely or not at all: a draft beside them, then one rename."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Args:
        path: The file; an existing one is replaced at the end.

    Yields:
        The draft to write; it is put in place at the end, or removed on an exception.
    """
    draft = _draft(path)
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file completely or not at all.

    Args:
        path: The file.
        text: Its content.
    """
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Args:
        folder: The folder; an existing one is replaced at the end.

    Yields:
        An empty draft folder to fill; it is put in place at the end, or removed on an exception.
    """
    draft = _draft(folder)
    try:
        draft.mkdir(parents=True)
        yield draft
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_draft(path: Path, of: Path) -> bool:
    """Return whether a file is a draft of another that a stopped run left behind.

    Args:
        path: The file.
        of: The file that was to be written.

    Returns:
        Whether its name is a draft's.
    """
    same_end = path.suffix == of.suffix  # it tells libraries the format
    return path.parent == of.parent and same_end and path.name.startswith(f".{of.stem}.")


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


def _put_in_place(draft: Path, folder: Path) -> None:
    """Rename the finished draft to the folder's name, in one step if there was none."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(f"{draft.name}.old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)

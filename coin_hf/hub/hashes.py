"""Hash folders, and check downloads against the hashes that the Hub names them by."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from coin_hf.errors import InputError

BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""Names of the files in the Hub's cache: SHA-256 of large files, git's SHA-1 of others."""


def folder_revision(folder: Path) -> str:
    """Return `sha256:` and a hash over the names and contents of all files of a folder.

    Args:
        folder: The folder.

    Returns:
        The revision; hidden files (locks, a download's bookkeeping) are ignored.
    """
    digest = hashlib.sha256()
    for file in sorted(_files(folder)):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        digest.update(f"{name}\0{_file_hash(file, 'sha256', _identity(file))}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def check_downloads(snapshot: Path, what: str, patterns: Sequence[str] = ("*",)) -> None:
    """Check that the files of a downloaded snapshot hold what their names in the cache say.

    A file is hashed once in a process, until it changes.

    Args:
        snapshot: A snapshot in the Hub's cache; its files are links to blobs named by their hash.
            Files that are no links are not checked: nothing says what they should hold.
        what: What was downloaded, for messages.
        patterns: Which files were asked for; others, of earlier downloads, are not read.

    Raises:
        InputError: If a file's content has another hash.
    """
    for file in _files(snapshot):
        blob = Path(os.path.realpath(file))
        name = file.relative_to(snapshot).as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if not file.is_symlink() or not BLOB.fullmatch(blob.name):
            continue
        kind = "sha256" if len(blob.name) == 64 else "git"
        if _file_hash(blob, kind, _identity(blob)) != blob.name:
            raise InputError(
                f"{file.name} of the {what} is not what the Hub holds, its download was damaged: "
                f"remove {blob} and try again"
            )


def _files(folder: Path) -> Iterator[Path]:
    """List all files below a folder, behind symbolic links too: what is read is what is hashed."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to where we were
            folders.clear()
            continue
        seen.add(real)
        yield from (path for name in files if (path := Path(root, name)).is_file())


def _identity(file: Path) -> tuple[int, ...]:
    """Return what changes on every write of a file."""
    seen = file.stat()
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


@lru_cache(maxsize=1 << 14)
def _file_hash(file: Path, kind: str, known: tuple[int, ...]) -> str:
    """Hash a file, cached until its identity `known` changes."""
    content = hashlib.sha256() if kind == "sha256" else hashlib.sha1()  # git's own
    if kind == "git":
        content.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
    return content.hexdigest()

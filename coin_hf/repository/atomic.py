"""Write files and folders completely or not at all: a draft beside them, then one rename.

A draft carries the process that writes it in its name: drafts of processes that ended are removed
by the next writer, those of live ones never.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from coin_hf.errors import InputError
from coin_hf.recipe.text_files import read_json

LONGEST_NAME = 200
"""Bytes of the longest name of an output: systems allow 255, and a draft's name is longer."""
COMMIT = ".coin-hf-commit.json"
"""Lists the drafts of files that are put in place together, once all of them are written."""
RENAME_EXCHANGE = 2
"""Linux's flag of `renameat2`."""
AT_FDCWD = -100


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Args:
        path: The file; an existing one is replaced at the end.

    Yields:
        The draft to write; it is put in place at the end, or removed on an exception.
    """
    _remove_stale(path)
    draft = _draft(path)
    try:
        yield draft
        _settle(draft)
        os.replace(draft, path)
        _sync(path.parent)
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
def whole_files(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Write several files of a folder, all or none, whenever the process is killed.

    Once all drafts are written, a list of them is; from then on, whoever reads the folder next
    finishes the renames by `finish`.

    Args:
        folder: The folder.
        names: The files' names in it.

    Yields:
        The draft of each file, by its name, to be written.
    """
    finish(folder)
    for name in names:
        _remove_stale(folder / name)
    drafts = {name: _draft(folder / name) for name in names}
    try:
        yield drafts
        for draft in drafts.values():
            _settle(draft)
        write_whole(folder / COMMIT, json.dumps({n: draft.name for n, draft in drafts.items()}))
        finish(folder)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def finish(folder: Path) -> None:
    """Put files in place whose writer was killed after it had written all of them.

    Args:
        folder: A folder that `whole_files` writes to.

    Raises:
        InputError: If the list of drafts is damaged.
    """
    commit = folder / COMMIT
    if not commit.exists():
        return
    for name, draft in read_json(commit, str(commit), "remove it, and evaluate again").items():
        safe = isinstance(draft, str) and Path(draft).name == draft and Path(name).name == name
        if not safe or not is_draft(folder / draft, folder / name):
            raise InputError(f"{commit} is damaged: remove it, and evaluate again")
        with suppress(FileNotFoundError):  # in place already
            os.replace(folder / draft, folder / name)
    _sync(folder)
    commit.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Args:
        folder: The folder; an existing one is replaced at the end.

    Yields:
        An empty draft folder to fill; it is put in place at the end, or removed on an exception.
    """
    _remove_stale(folder)
    draft = _draft(folder)
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in draft.rglob("*"):
            _settle(path)
        _put_in_place(draft, folder)
        _sync(folder.parent)
    finally:
        try:
            shutil.rmtree(draft, ignore_errors=True)
        except BaseException:  # a signal in the midst of it
            shutil.rmtree(draft, ignore_errors=True)
            raise


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


def check_name(path: Path) -> None:
    """Refuse a file name that cannot be written, before anything is computed.

    Args:
        path: The output.

    Raises:
        InputError: If it has no name, is too long, or holds a null character.
    """
    for part in path.parts:
        if "\0" in part or len(os.fsencode(part)) > LONGEST_NAME:
            raise InputError(
                f"the name '{part[:40].encode(errors='replace').decode()}...' of the output cannot "
                f"be written: it must have at most {LONGEST_NAME} bytes and no null character"
                if "\0" not in part
                else "the name of the output holds a null character: choose another `output`"
            )


def _draft(path: Path) -> Path:
    return path.with_name(
        f".{path.stem}.{os.getpid()}-{_host()}-{uuid.uuid4().hex[:8]}{path.suffix}"
    )


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _remove_stale(path: Path) -> None:
    """Remove drafts of a file or folder that processes of this machine left when they ended."""
    start, end = f".{path.stem}.", path.suffix
    with suppress(FileNotFoundError, NotADirectoryError):
        for each in list(path.parent.iterdir()):
            if not (each.name.startswith(start) and each.name.endswith(end)):
                continue
            pid, _, rest = each.name[len(start) : len(each.name) - len(end)].partition("-")
            if rest.partition("-")[0] != _host() or not pid.isdecimal() or _alive(int(pid)):
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _settle(path: Path) -> None:
    """Give a finished file the mode that the umask says, and write it to the disk."""
    if path.is_dir():
        _sync(path)
        return
    umask = os.umask(0o022)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Write a folder's entries to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put_in_place(draft: Path, folder: Path) -> None:
    """Give the finished draft the folder's name, in one step."""
    if not folder.exists():
        draft.rename(folder)
        return
    if _exchange(draft, folder):
        return  # the draft's name now holds the old content, which is removed
    old = draft.with_name(f"{draft.name}.old")  # without `renameat2`: two steps
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; return False where the system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))

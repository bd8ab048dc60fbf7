"""Let one process at a time write an output: the second one says so, and ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coin_hf.errors import InputError

try:
    import fcntl
except ImportError:  # a system without such locks: two writers there are told apart by nothing
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, int] = {}
"""The locks of this process, by file; the operating system frees them when it ends."""


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Hold the lock of an output while it is computed and written.

    The lock lies beside the output, as `.NAME.lock`, and holds its owner's process and machine. It
    is the operating system's: a process that is killed frees it.

    Args:
        output: The output file or folder, which need not exist.

    Yields:
        Nothing.

    Raises:
        InputError: If another process holds it.
    """
    place = output.expanduser().resolve()  # one lock for a link and what it leads to
    file = place.with_name(f".{place.name}.lock")
    if fcntl is None or file in _held or not file.parent.is_dir():
        yield  # this process's own, or an output whose folder is still to be made
        return
    handle = _lock(file, output)
    if handle is None:
        yield
        return
    _held[file] = handle
    try:
        yield
    finally:
        del _held[file]
        try:
            _remove(file)
        except BaseException:  # a signal in the midst of it
            _remove(file)
            raise
        finally:
            os.close(handle)


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


def _lock(file: Path, output: Path) -> int | None:
    """Lock a file; return None where locks, or writing, are not possible."""
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # said by whoever writes there
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise InputError(
                f"{output} is being written by {owner}: wait for it, or choose another output"
            ) from None
        except OSError:
            os.close(handle)
            return None
        with suppress(OSError):
            if os.fstat(handle).st_ino == file.stat().st_ino:  # not one removed in between
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return handle
        os.close(handle)

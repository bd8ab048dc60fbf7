"""Kill a command at each of its file operations, in a process of its own."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


def operations(folder: Path, command: Callable[[], Any]) -> int:
    """Run a command to its end and count what it changes below a folder."""
    read, write = os.pipe()
    status = _forked(folder, command, None, write)
    os.close(write)
    with os.fdopen(read) as stream:
        counted = stream.read()
    assert status == 0, status
    return int(counted)


def killed(folder: Path, command: Callable[[], Any], at: int, number: int = signal.SIGKILL) -> bool:
    """Run a command and kill it just before its operation `at`; return whether it got that far."""
    status = _forked(folder, command, (at, number), None)
    assert status in (0, number), status
    return status == number


def _forked(
    folder: Path, command: Callable[[], Any], kill: tuple[int, int] | None, report: int | None
) -> int:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    count, below = 0, str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        path = str(arguments[0]) if arguments else ""
        opened = event == "open" and (
            (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
            or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        )
        if below in path and (opened or event in WRITING):
            count += 1
            if kill is not None and count == kill[0] + 1:
                os.kill(os.getpid(), kill[1])

    code = 1
    try:
        warnings.simplefilter("ignore")
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # this process ends soon
        sys.addaudithook(hook)
        command()
        if report is not None:
            os.write(report, str(count).encode())
        code = 0
    finally:
        os._exit(code)

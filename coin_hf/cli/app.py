"""The command line: results to stdout, progress and warnings to stderr, exit code 2 for mistakes.

Nothing heavy is imported before a command needs it: `coin-hf --help` is instant.
"""

import errno
import os
import signal
import sys
import threading
import time
import warnings
from typing import Annotated, Any

import typer

import coin_hf
from coin_hf.cli import codes, models, pages, serving
from coin_hf.cli.numbers import gathered
from coin_hf.cli.output import say, speaks
from coin_hf.errors import InputError

app = typer.Typer(
    name="coin-hf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Erasure-coded inference: make one coded network that stands in for any missing expert.",
)

PLACE_REFUSED = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM
)  # fmt: skip
"""Error codes for caches, downloads or data that cannot be written."""

GRACE = 3.0
"""Seconds that a failing process waits for another one to report first."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"coin-hf {coin_hf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Global options."""


COMMANDS = (
    models.demo,
    models.encode,
    models.evaluate,
    models.compare,
    models.push,
    codes.recode,
    codes.fisher,
    codes.design,
    codes.tune_betas,
    serving.serve,
    serving.load,
    serving.simulate,
    pages.app,
    pages.space,
    models.schema,
)
for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)
app.command("code", hidden=True)(codes.design)  # its former name


def main() -> None:
    """Run the command line: a user's mistake becomes one sentence and exit code 2."""
    warnings.showwarning = _showwarning
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    try:
        app(gathered(sys.argv[1:]), prog_name="coin-hf")
    except SystemExit as end:
        if not end.code:
            _leave_group()
        raise
    except InputError as error:
        if not speaks():
            # The main process reports an error of all processes, and its end ends this one. An
            # error of this process alone is reported here.
            time.sleep(GRACE)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in PLACE_REFUSED:
            raise
        way_out = "free some space, or choose a place where you may write"
        print(f"error: {error}: {way_out}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(GRACE)  # most likely another process ended, and the launcher ends this one
        raise


def _stop(number: int, frame: object) -> None:
    """End in order, as a scheduler asks before it kills: drafts are removed on the way."""
    say("stopped by SIGTERM: nothing half-written is left; `encode --resume` and `compare` go on")
    sys.exit(128 + number)


def _leave_group() -> None:
    """Close the connections to the other processes.

    Their threads must end before the interpreter, which occasionally aborts on a running one.
    """
    distributed = sys.modules.get("torch.distributed")  # None: the command needed no torch
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _showwarning(message: Warning | str, category: type, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")

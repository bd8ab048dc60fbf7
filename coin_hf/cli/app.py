"""The command line: results to stdout, progress and warnings to stderr, exit code 2 for mistakes.

Nothing heavy is imported before a command needs it: `coin-hf --help` is instant.
"""

import errno
import os
import sys
import time
import warnings
from typing import Annotated, Any

import typer

import coin_hf
from coin_hf.cli import codes, models
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
"""What the system says where caches, downloads or data cannot be written."""

GRACE = 3.0
"""Seconds for which a process that fails lets another one speak first."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"coin-hf {coin_hf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


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
    models.schema,
)
for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)
app.command("code", hidden=True)(codes.design)  # the name it had before


def main() -> None:
    """Run the command line: a user's mistake becomes one sentence and exit code 2."""
    warnings.showwarning = _showwarning
    try:
        app(gathered(sys.argv[1:]), prog_name="coin-hf")
    except SystemExit as end:
        if not end.code:
            _leave_group()
        raise
    except InputError as error:
        if not speaks():
            # What goes wrong in all processes is said by the main one, whose end ends this one
            # too. What goes wrong here alone is said here.
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


def _leave_group() -> None:
    """Close the connections to the other processes.

    Their threads must end before the interpreter does: now and then it aborts on one that runs.
    """
    distributed = sys.modules.get("torch.distributed")  # not there: the command needed no torch
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _showwarning(message: Warning | str, category: type, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")

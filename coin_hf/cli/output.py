"""Print results to stdout and the rest to stderr, in the main process only."""

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # `coin-hf --help` needs none of it
    from coin_hf.records.coin import CoinRecord
    from coin_hf.reports.result import Result

Overrides = Annotated[
    list[str],
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Override a key, such as lam=0.01."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def speaks() -> bool:
    """Return whether this is the main process, which alone writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line to stderr.

    Args:
        line: The line.
    """
    if speaks():
        print(line, file=sys.stderr, flush=True)


def show(result: "Result", as_json: bool) -> None:
    """Print a result to stdout.

    Args:
        result: The result.
        as_json: As JSON instead of a table.
    """
    if speaks():
        print(plain_json(result.dump()) if as_json else result.table())


def plain_json(data: Any) -> str:
    """Write plain data as JSON.

    Args:
        data: What `--json` prints.

    Returns:
        The text.
    """
    return json.dumps(data, indent=2)


def warn_of_local_experts(coin: "CoinRecord") -> None:
    """Warn that others cannot decode with experts that are local folders.

    Args:
        coin: The record of what is pushed.
    """
    from coin_hf.repository.paths import local_experts

    names = local_experts(coin)
    if names:
        say(
            f"warning: {', '.join(names)} lie in folders, so others cannot decode with them: push "
            "the experts too and encode from their Hub ids"
        )

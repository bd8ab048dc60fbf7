"""Commands that serve coded models."""

from pathlib import Path
from typing import Annotated

import typer

from coin_hf.cli.output import Overrides, plain_json, say
from coin_hf.errors import InputError


def serve(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings, a YAML file.")
    ] = None,
    override: Overrides = [],  # noqa: B006
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="local or remote: where the networks run.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and exit.")
    ] = False,
) -> None:
    """Serve a coded model and its experts over HTTP: answers while one of them is slow or down."""
    try:
        from coin_hf.serve.run import read_settings
        from coin_hf.serve.run import serve as run
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'coin-hf[serve]'") from error
    changes = [*override, *([f"backend={backend}"] if backend else [])]
    settings = read_settings(config, changes)
    if dry_run:
        print(plain_json(settings.model_dump(mode="json")))
        return
    say(f"loading {target}")
    run(target, settings, revision)

"""Commands that serve coded models."""

from pathlib import Path
from typing import Annotated

import typer

from coin_hf.cli.output import AsJson, Overrides, plain_json, say
from coin_hf.errors import InputError

NEEDED = "serving needs {}: pip install 'coin-hf[serve]'"


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
        from coin_hf.serve.run import serve as run
        from coin_hf.serve.settings import ServeSettings, read_block
    except ImportError as error:
        raise InputError(NEEDED.format(error.name)) from error
    changes = [*override, *([f"backend={backend}"] if backend else [])]
    settings = read_block(ServeSettings, "serve", config, changes)
    if dry_run:
        print(plain_json(settings.model_dump(mode="json")))
        return
    say(f"loading {target}")
    run(target, settings, revision)


def simulate(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The scenario, a YAML file.")
    ] = None,
    override: Overrides = [],  # noqa: B006
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the p99 to a PNG or SVG file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate servers under load: uncoded, replicas, coded, or a standby for all."""
    from dataclasses import asdict

    try:
        from coin_hf.serve.settings import read_block
        from coin_hf.serve.simulation import Scenario
        from coin_hf.serve.simulation import simulate as run
        from coin_hf.serve.simulation_report import draw, table
    except ImportError as error:
        raise InputError(NEEDED.format(error.name)) from error
    scenario = read_block(Scenario, "simulate", file, override)
    outcomes = run(scenario)
    if figure is not None:
        draw(scenario, outcomes, figure)
        say(f"saved to {figure}")
    print(plain_json([asdict(each) for each in outcomes]) if as_json else table(outcomes))

"""Commands that serve coded models."""

from pathlib import Path
from typing import Annotated

import typer

from coin_hf.cli.extras import needs
from coin_hf.cli.output import AsJson, Overrides, plain_json, say
from coin_hf.errors import InputError


def serve(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings, a YAML file.")
    ] = None,
    override: Overrides = [],  # noqa: B006
    backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="local, remote or ray."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and exit.")
    ] = False,
    print_ray_config: Annotated[
        bool, typer.Option("--print-ray-config", help="Print what `serve deploy` takes and exit.")
    ] = False,
) -> None:
    """Serve a coded model and its experts over HTTP: answers while one of them is slow or down."""
    with needs("serve"):
        from coin_hf.serve.run import serve as run
        from coin_hf.serve.settings import ServeSettings, read_block
    changes = [*override, *([f"backend={backend}"] if backend else [])]
    settings = read_block(ServeSettings, "serve", config, changes)
    if settings.backend == "ray" or print_ray_config:
        with needs("ray"):
            from coin_hf.serve.ray_backend import config_text
    if print_ray_config:
        print(config_text(target, settings, revision), end="")
        return
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

    with needs("serve"):
        from coin_hf.serve.figures import check_figure
        from coin_hf.serve.settings import read_block
        from coin_hf.serve.simulation import Scenario
        from coin_hf.serve.simulation import simulate as run
        from coin_hf.serve.simulation_report import draw, table
    check_figure(figure)
    scenario = read_block(Scenario, "simulate", file, override)
    outcomes = run(scenario)
    if figure is not None:
        draw(scenario, outcomes, figure)
        say(f"saved to {figure}")
    print(plain_json([asdict(each) for each in outcomes]) if as_json else table(outcomes))


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's address.")],
    rate: Annotated[float, typer.Option(min=1e-3, max=1e4, help="Queries a second.")] = 10.0,
    requests: Annotated[int, typer.Option(min=1, max=10**6, help="Number of queries.")] = 200,
    expert: Annotated[
        list[str], typer.Option(metavar="NAME", help="Experts to ask; by default all.")
    ] = [],  # noqa: B006
    file: Annotated[list[Path], typer.Option(metavar="FILE", help="Images to send by turns.")] = [],  # noqa: B006
    text: Annotated[list[str], typer.Option(help="Texts to send by turns.")] = [],  # noqa: B006
    kill: Annotated[
        int | None, typer.Option(metavar="PID", help="End this process halfway, by SIGKILL.")
    ] = None,
    straggle: Annotated[
        list[int],
        typer.Option(metavar="PID", help="Stop this process now and then, for 5 % of the time."),
    ] = [],  # noqa: B006
    pause: Annotated[
        float, typer.Option(min=0.01, max=60.0, help="Seconds that such a stop lasts.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the times.")] = 0,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the latencies to a PNG or SVG file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put load on a server: queries at random times, whatever the answers take."""
    import asyncio
    import json
    from dataclasses import asdict

    with needs("serve"):
        from coin_hf.serve.figures import check_figure
        from coin_hf.serve.load import draw, put_load
    check_figure(figure)
    if bool(file) == bool(text):
        raise InputError("say what to send: --file IMAGE or --text TEXT, once for each")
    try:
        bodies = [path.read_bytes() for path in file]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    kind = "application/octet-stream" if file else "application/json"
    bodies += [json.dumps({"inputs": each}).encode() for each in text]
    report = asyncio.run(
        put_load(
            url.rstrip("/"),
            bodies,
            kind,
            rate=rate,
            requests=requests,
            experts=expert,
            seed=seed,
            kill=kill,
            straggle=straggle,
            pause=pause,
        )
    )
    if figure is not None:
        draw(report, figure)
        say(f"saved to {figure}")
    print(plain_json([asdict(each) for each in report.asked]) if as_json else report.table())

"""The offline tables, from what `run_all.sh` left in runs/offline.

    python recipes/experiments/offline/tables.py collect      # keep the results of what is finished
    python recipes/experiments/offline/tables.py render       # write the pages from what is kept

`collect` copies every finished `result.json` to `results/<foundation>/<experiment>.json` beside
this script. `render` puts the tables into docs/pages/experiments/offline.md and, NDA alone, into
index.md there, each between `<!-- offline -->` and `<!-- /offline -->`; the paper's own, from
recipes/paper/reported.json, into the former between `<!-- paper -->` and `<!-- /paper -->`; and it
draws the figures 2a and 2b below the folder `offline` beside that page. Experiments are those that
the `experiments-*.yaml` name, contenders whatever is in the results, in their order.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from kept import HERE, RESULTS, Result, collect, load
from rendering import page, short
from reported import section

from coin_hf.errors import InputError
from coin_hf.reports.comparison_figures import epochs_figure, samples_figure

DRAWN: dict[str, Callable[[Result, Path], None]] = {
    "fig2a": epochs_figure,
    "fig2b": samples_figure,
}
"""Experiments that are figures, and how they are drawn."""
PAGES = HERE.parents[2] / "docs" / "pages" / "experiments"
PAGE, SHORT = PAGES / "offline.md", PAGES / "index.md"
commands = typer.Typer(
    help="The offline tables, from what run_all.sh left in runs/offline.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def filled(file: Path, **contents: str) -> str:
    """Return the text of a page with new content between its marks.

    Args:
        file: The page.
        **contents: What goes there, by the name of the marks.

    Returns:
        The whole text.

    Raises:
        InputError: If there is no such page, or it has no marks.
    """
    text = file.read_text("utf-8") if file.is_file() else ""
    for name, content in contents.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, begin, rest = text.partition(opening)
        _, end, tail = rest.partition(closing)
        if not begin or not end:
            raise InputError(f"{file} has no place for the tables: add {opening} and {closing}")
        text = f"{head}{begin}\n{content}\n{end}{tail}"
    return text


@commands.command("collect")
def collect_command(
    runs: Annotated[Path, typer.Argument(help="What run_all.sh wrote.")] = Path("runs/offline"),
    results: Annotated[Path, typer.Option(help="Where the results are kept.")] = RESULTS,
) -> None:
    """Keep the results of the finished experiments."""
    for file in collect(runs, results):
        print(file)


@commands.command("render")
def render_command(
    results: Annotated[Path, typer.Option(help="Where the results are kept.")] = RESULTS,
    whole: Annotated[Path, typer.Option("--page", help="The page with everything.")] = PAGE,
    brief: Annotated[Path, typer.Option("--short", help="The one with the short table.")] = SHORT,
) -> None:
    """Write the tables into the pages, and draw the figures."""
    kept = load(results)
    texts = {
        whole: filled(whole, offline=page(kept), paper=section(kept)),
        brief: filled(brief, offline=short(kept)),
    }
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
        print(file)
    for foundation, found in kept.items():
        for name in DRAWN.keys() & found.keys():
            figure = whole.with_suffix("") / foundation / f"{name}.png"
            figure.parent.mkdir(parents=True, exist_ok=True)
            DRAWN[name](found[name], figure)


if __name__ == "__main__":
    try:
        commands()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

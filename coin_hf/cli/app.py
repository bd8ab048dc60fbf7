"""The command line: results to stdout, progress and warnings to stderr, exit code 2 for mistakes.

Nothing heavy is imported before a command needs it: `coin-hf --help` is instant.
"""

import errno
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from coin_hf.cli.codes import COMMANDS, gathered
from coin_hf.errors import InputError

app = typer.Typer(
    name="coin-hf",
    no_args_is_help=True,
    add_completion=False,
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

Overrides = Annotated[
    list[str],
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Change a key, such as lam=0.01."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def encode(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    override: Overrides = [],  # noqa: B006  # typer reads it, nothing changes it
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe, revisions pinned, and stop.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a coded model in the output folder.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Push the result to the recipe's hub.repo.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep partial work beside the output, and go on there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a coded model from a recipe's experts, measure it, and save it."""
    from coin_hf.recipe import Recipe

    parsed = Recipe.from_yaml(recipe, override)
    if push and parsed.hub is None:
        raise InputError(f"{recipe} does not say where to push: add `hub: {{repo: name/model}}`")
    if parsed.output is None and not push and not dry_run:
        raise InputError(f"{recipe} has no output: add `output: FOLDER`, or -o output=FOLDER")
    from coin_hf import pipeline
    from coin_hf.repository.folder import check_output

    if dry_run:
        _dry_run(pipeline.resolve(parsed).dump())
        return
    if parsed.output is not None:
        check_output(Path(parsed.output), overwrite=overwrite)
    work = None
    if resume:
        if parsed.output is None:
            raise InputError("--resume keeps its work beside the output: add `output: FOLDER`")
        output = Path(parsed.output).absolute()
        work = output.with_name(f"{output.name}.partial")
    ensemble = pipeline.encode(parsed, progress=True, resume=work)
    if not _speaks():
        return
    if parsed.output is not None:
        ensemble.save_pretrained(parsed.output, overwrite=overwrite)
        _say(f"saved to {parsed.output}")
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    if push and parsed.hub is not None:
        _warn_of_local_experts(ensemble.coin)
        settings = parsed.hub.model_dump(exclude={"repo"})
        _say(f"pushed to {ensemble.push_to_hub(parsed.hub.repo, **settings)}")
    _show(ensemble.result, as_json)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.")] = None,
    override: Overrides = [],  # noqa: B006
    save: Annotated[
        bool, typer.Option("--save", help="Put the result into the folder, its card too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a coded model again: every erasure, on the data it records."""
    from coin_hf import pipeline
    from coin_hf.hub.client import local_folder
    from coin_hf.repository.folder import save_result

    folder = local_folder(target)
    if save and folder is None:
        raise InputError(f"'{target}' lies on the Hub: --save writes to a folder only")
    result = pipeline.evaluate(target, revision=revision, overrides=override, progress=True)
    if save and folder is not None and _speaks():
        save_result(folder, result)
        _say(f"saved to {folder}")
    _show(result, as_json)


@app.command()
def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    override: Overrides = [],  # noqa: B006
    style: Annotated[
        str, typer.Option(metavar="STYLE", help="Of the table: plain, markdown or latex.")
    ] = "plain",
    as_json: AsJson = False,
) -> None:
    """Compare all coders on a recipe's experts; goes on where an earlier call was stopped."""
    from coin_hf.recipe import Recipe

    parsed = Recipe.from_yaml(recipe, override)
    if style not in ("plain", "markdown", "latex"):
        raise InputError(f"there is no table style '{style}': take plain, markdown or latex")
    from coin_hf.comparison.compare import compare
    from coin_hf.comparison.files import save_comparison

    result = compare(parsed, progress=True)
    if not _speaks():
        return
    from coin_hf.reports.comparison_table import comparison_table

    _say(f"saved to {save_comparison(result, Path(str(parsed.output)))}")
    print(json.dumps(result, indent=2) if as_json else comparison_table(result, style))  # type: ignore[arg-type]


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A coded model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub id to push to.")],
    private: Annotated[bool, typer.Option("--private", help="Create it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Add coded model",
) -> None:
    """Push a coded model's folder to the Hub, its card rendered for that repository."""
    from coin_hf.repository.folder import push_folder, read_repository

    _warn_of_local_experts(read_repository(folder, str(folder))[0])
    url = push_folder(
        folder,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
    )
    print(url)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to work.")] = Path(
        "coin-hf-demo"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune two ResNet50s on handwritten digits, code them, decode every erasure."""
    from coin_hf.demo.run import run

    ensemble = run(folder, overwrite=overwrite)
    _show(ensemble.result, as_json)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors to complete them."""
    from coin_hf.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


for name, command in COMMANDS.items():
    app.command(name)(command)


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
        if not _speaks():
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


def _speaks() -> bool:
    """Say whether this is the process that writes and talks."""
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    if _speaks():
        print(line, file=sys.stderr, flush=True)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if not _speaks():
        return
    from coin_hf.reports.tables import table

    print(json.dumps(result, indent=2) if as_json else table(result))


def _dry_run(recipe: dict[str, Any]) -> None:
    if _speaks():
        import yaml

        print(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), end="")


def _warn_of_local_experts(coin: dict[str, Any]) -> None:
    from coin_hf.repository.folder import local_experts

    names = local_experts(coin)
    if names:
        _say(
            f"warning: {', '.join(names)} lie in folders, so others cannot decode with them: push "
            "the experts too and encode from their Hub ids"
        )


def _showwarning(message: Warning | str, category: type, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")

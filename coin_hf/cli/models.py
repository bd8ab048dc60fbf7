"""Commands that encode, evaluate, compare and push coded models."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from coin_hf.cli.output import (
    AsJson,
    Overrides,
    plain_json,
    say,
    show,
    speaks,
    warn_of_local_experts,
)
from coin_hf.errors import InputError


def encode(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    override: Overrides = [],  # noqa: B006  # typer reads it, nothing changes it
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe with pinned revisions and exit.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a coded model in the output folder.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Push the result to the recipe's hub.repo.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Save partial results and resume from them.")
    ] = False,
    log_with: Annotated[
        str | None, typer.Option(help="Tracker for distillation: tensorboard, wandb, ..., all.")
    ] = None,
    log_dir: Annotated[Path, typer.Option(help="Folder for a tracker's files.")] = Path("logs"),
    as_json: AsJson = False,
) -> None:
    """Encode a recipe's experts into a coded model, evaluate it, and save it."""
    from coin_hf.recipe import Recipe

    parsed = Recipe.from_yaml(recipe, override)
    if push and parsed.hub is None:
        raise InputError(f"{recipe} does not say where to push: add `hub: {{repo: name/model}}`")
    if parsed.output is None and not push and not dry_run:
        raise InputError(f"{recipe} has no output: add `output: FOLDER`, or -o output=FOLDER")
    from coin_hf import pipeline
    from coin_hf.encoding.pinning import resolve
    from coin_hf.repository.folder import check_output
    from coin_hf.repository.locks import only_writer

    if dry_run:
        _show_recipe(resolve(parsed).dump())
        return
    if parsed.output is not None:
        check_output(Path(parsed.output), overwrite=overwrite)
    checkpoints = None
    if resume:
        if parsed.output is None:
            raise InputError(
                "--resume saves partial results beside the output: add `output: FOLDER`"
            )
        output = Path(parsed.output).absolute()
        checkpoints = output.with_name(f"{output.name}.partial")
    if push and parsed.hub is not None:
        from coin_hf.repository.push import check_push

        check_push(parsed.hub.repo, create_pr=parsed.hub.create_pr)
    writes = parsed.output is not None and speaks()
    with only_writer(Path(str(parsed.output))) if writes else nullcontext():
        ensemble = pipeline.encode(
            parsed, progress=True, resume=checkpoints, log_with=log_with, log_dir=log_dir
        )
        if not speaks():
            return
        if parsed.output is not None:
            ensemble.save_pretrained(parsed.output, overwrite=overwrite)
            say(f"saved to {parsed.output}")
    if checkpoints is not None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    if push and parsed.hub is not None:
        warn_of_local_experts(ensemble.coin)
        settings = parsed.hub.model_dump(exclude={"repo"})
        say(f"pushed to {ensemble.push_to_hub(parsed.hub.repo, **settings)}")
    show(ensemble.result, as_json)


def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.")] = None,
    override: Overrides = [],  # noqa: B006
    save: Annotated[
        bool, typer.Option("--save", help="Save the result and the card to the folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a coded model again: every erasure, on its recorded data."""
    from coin_hf import pipeline
    from coin_hf.hub.client import local_folder
    from coin_hf.repository.folder import save_result

    folder = local_folder(target)
    if save and folder is None:
        raise InputError(f"'{target}' lies on the Hub: --save writes to a folder only")
    result = pipeline.evaluate(target, revision=revision, overrides=override, progress=True)
    if save and folder is not None and speaks():
        save_result(folder, result)
        say(f"saved to {folder}")
    show(result, as_json)


def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    override: Overrides = [],  # noqa: B006
    style: Annotated[
        str, typer.Option(metavar="STYLE", help="Table style: plain, markdown or latex.")
    ] = "plain",
    as_json: AsJson = False,
) -> None:
    """Compare all coders on a recipe's experts; resume a stopped comparison."""
    from coin_hf.recipe import Recipe

    parsed = Recipe.from_yaml(recipe, override)
    if style not in ("plain", "markdown", "latex"):
        raise InputError(f"there is no table style '{style}': take plain, markdown or latex")
    from coin_hf.comparison.compare import compare
    from coin_hf.comparison.files import save_comparison

    result = compare(parsed, progress=True)
    if not speaks():
        return
    from coin_hf.reports.comparison_table import comparison_table

    say(f"saved to {save_comparison(result, Path(str(parsed.output)))}")
    print(plain_json(result) if as_json else comparison_table(result, style))  # type: ignore[arg-type]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a coded model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub id to push to.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Add coded model",
    handler: Annotated[
        bool, typer.Option("--handler", help="Add handler.py, for Inference Endpoints.")
    ] = False,
) -> None:
    """Push a coded model's folder to the Hub, with its card rendered for that repository."""
    from coin_hf.repository.folder import read_records
    from coin_hf.repository.push import push_folder

    warn_of_local_experts(read_records(folder, str(folder))[0])
    url = push_folder(
        folder,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        handler=handler,
    )
    print(url)


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Output folder.")] = Path(
        "coin-hf-demo"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an old demo.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune two ResNet50s on handwritten digits, code them, decode every erasure."""
    from coin_hf.demo.run import run

    ensemble = run(folder, overwrite=overwrite)
    show(ensemble.result, as_json)


def schema() -> None:
    """Print the JSON schema of recipes, for editors to complete them."""
    from coin_hf.recipe import Recipe

    print(plain_json(Recipe.model_json_schema()))


def _show_recipe(recipe: dict[str, Any]) -> None:
    if speaks():
        import yaml

        print(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), end="")

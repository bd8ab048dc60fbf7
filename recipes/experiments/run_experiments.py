r"""Run a whole set of experiments: make the experts, then compare the coders, table by table.

    python recipes/experiments/run_experiments.py recipes/paper/experiments.yaml --only table1
    python recipes/experiments/run_experiments.py recipes/paper/experiments.yaml \
        --launch "accelerate launch"

The file names what experts start from, how they are trained, the experts, and the recipes of each
table or figure; see `recipes/paper/experiments.yaml`. Optional keys: `foundation`, settings by
which what they start from is trained first; `instead_of`, where the recipes' own paths lie, which
`output` replaces; `override`, changes of the recipes by table. What is there already is not made
again: the same command goes on after a stop. `-o KEY=VALUE` reaches every `coin-hf compare`.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from coin_hf.errors import InputError
from coin_hf.recipe import Recipe
from coin_hf.reports.comparison_table import comparison_table

HERE = Path(__file__).parent
FINETUNE = HERE.parent / "finetune.py"


def main(
    experiments: Annotated[Path, typer.Argument(help="The file that lists them.")],
    only: Annotated[list[str], typer.Option(help="Tables, figures or single recipes.")] = [],  # noqa: B006
    launch: Annotated[str, typer.Option(help="What starts the work, an accelerate launcher.")] = "",
    override: Annotated[list[str], typer.Option("-o", "--override", metavar="KEY=VALUE")] = [],  # noqa: B006
    train: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Changes of the training settings.")
    ] = [],  # noqa: B006
) -> None:
    """Make experts and compare coders."""
    plan = yaml.safe_load(experiments.read_text(encoding="utf-8"))
    given = _pairs(train)
    training = {**plan["training"], **given}
    plan["experts"] = {  # what is given here goes before what an expert has of its own, too
        name: {**own, **{key: value for key, value in given.items() if key in own}}
        for name, own in plan["experts"].items()
    }
    chosen = _selected(plan["tables"], only)
    changes = {
        (name, file): [
            *_moved(plan, experiments.parent / file),
            *plan.get("override", {}).get(name, []),
            *override,
        ]
        for name, files in chosen.items()
        for file in files
    }
    recipes = {
        key: Recipe.from_yaml(experiments.parent / key[1], said) for key, said in changes.items()
    }
    launcher = shlex.split(launch) or [sys.executable]
    if "foundation" in plan and not (_folder(plan, "foundation") / "config.json").is_file():
        options = _options({**plan["foundation"], **given})
        _run([*launcher, FINETUNE, *options, "--output", _folder(plan, "foundation")])
    for name in _needed(plan, list(recipes.values())):
        _make(name, plan, training, launcher)
    for name, files in chosen.items():
        tables = []
        for file in files:
            said = [part for change in changes[name, file] for part in ("-o", change)]
            _run([*launcher, "-m", "coin_hf", "compare", experiments.parent / file, *said])
            folder = Path(str(recipes[name, file].output))
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            tables.append(f"## {Path(file).stem}\n\n{comparison_table(result, 'markdown')}\n")
        summary = Path(plan["output"]) / f"{name}.md"
        summary.write_text(f"# {name}\n\n" + "\n".join(tables), encoding="utf-8")
        print(summary)


def _selected(tables: dict[str, list[str]], only: list[str]) -> dict[str, list[str]]:
    """The tables asked for, or the recipes by the names of their files; all where nothing is."""
    names = set(tables) | {Path(file).stem for each in tables.values() for file in each}
    for name in only:
        if name not in names:
            known = ", ".join(tables)
            raise InputError(f"there is no table, figure or recipe '{name}': there are {known}")
    kept = {
        name: [f for f in files if not only or name in only or Path(f).stem in only]
        for name, files in tables.items()
    }
    return {name: files for name, files in kept.items() if files}


def _moved(plan: dict[str, Any], file: Path) -> list[str]:
    """Overrides that move a recipe's own paths from the plan's `instead_of` to its `output`."""
    old, new = plan.get("instead_of"), plan["output"]
    if old is None:
        return []
    recipe = Recipe.from_yaml(file)
    places = {f"experts.{i}.model": expert.model for i, expert in enumerate(recipe.experts)}
    places |= {"task_arithmetic.foundation": recipe.foundation.foundation}
    places |= {"output": str(recipe.output)}
    return [f"{key}={path.replace(old, new)}" for key, path in places.items()]


def _needed(plan: dict[str, Any], recipes: list[Recipe]) -> list[str]:
    """The experts that the recipes name, in the plan's order."""
    models = {expert.model for recipe in recipes for expert in recipe.experts}
    return [name for name in plan["experts"] if _folder(plan, name).as_posix() in models]


def _folder(plan: dict[str, Any], name: str) -> Path:
    return Path(plan["output"]) / "experts" / name


def _make(name: str, plan: dict[str, Any], training: dict[str, Any], launcher: list[str]) -> None:
    """Train one expert, unless it is there; where several learning rates are said, choose first."""
    if (_folder(plan, name) / "config.json").is_file():
        return
    settings = {**training, **plan["experts"][name], **_chosen(plan, training, launcher)}
    start = Path(plan["output"]) / "experts" / "start"
    command = [*launcher, FINETUNE, *_options(plan["start"] | settings)]
    _run([*command, "--output", _folder(plan, name), "--save-start", start])


def _chosen(plan: dict[str, Any], training: dict[str, Any], launcher: list[str]) -> dict[str, Any]:
    """Choose learning rate and epochs by the validation accuracy of `choose_on`, nothing else."""
    if not isinstance(training["lr"], list):
        return {}
    trials = Path(plan["output"]) / "trials"
    if (trials / "choice.json").is_file():
        kept = json.loads((trials / "choice.json").read_text(encoding="utf-8"))
        return {"lr": kept["lr"], "epochs": kept["epochs"]}
    found = []
    for lr in training["lr"]:
        folder = trials / f"lr-{lr}"
        settings = {**training, "lr": lr, **plan["experts"][plan["choose_on"]]}
        _run([*launcher, FINETUNE, *_options(plan["start"] | settings), "--output", folder])
        history = json.loads((folder / "training.json").read_text())["history"]
        found += [(entry["accuracy"], -entry["epoch"], lr) for entry in history]
    accuracy, epochs, lr = max(found, key=lambda one: one[:2])
    chosen = {"lr": lr, "epochs": -epochs}
    record = {**chosen, "accuracy": accuracy, "expert": plan["choose_on"], "of": training["lr"]}
    (trials / "choice.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return chosen


def _options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of `finetune.py`: true means a flag."""
    options: list[str] = []
    for key, value in settings.items():
        if value is None or value is False:
            continue
        options.append(f"--{key.replace('_', '-')}")
        if value is not True:
            options.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return options


def _run(command: list[Any]) -> None:
    words = [str(word) for word in command]
    print("$", shlex.join(words), file=sys.stderr, flush=True)
    done = subprocess.run(words, check=False, stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)


def _pairs(changes: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE settings, the values as YAML."""
    for change in changes:
        if "=" not in change:
            raise InputError(f"--train {change} is not of the form KEY=VALUE")
    parts = [change.partition("=") for change in changes]
    return {key: yaml.safe_load(value) for key, _, value in parts}


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

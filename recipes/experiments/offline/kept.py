"""Results of finished experiments, kept beside the recipes in results/<foundation>/."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from coin_hf.errors import InputError
from coin_hf.repository.atomic import write_whole

Result = dict[str, Any]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LARGEST = 200_000
"""Characters of a kept file above which it goes without the scores of every value tried."""


def experiments() -> dict[str, list[str]]:
    """Return the experiments of each foundation, in the order of its plan."""
    plans = {file.stem.partition("-")[2]: file for file in sorted(HERE.glob("experiments-*.yaml"))}
    said = {name: yaml.safe_load(file.read_text("utf-8")) for name, file in plans.items()}
    return {
        name: [Path(file).stem for files in plan["tables"].values() for file in files]
        for name, plan in said.items()
    }


def collect(runs: Path, results: Path = RESULTS) -> list[Path]:
    """Keep the results of the finished experiments.

    Args:
        runs: The folder that holds `<foundation>/<experiment>/result.json`.
        results: Where to: `<foundation>/<experiment>.json`.

    Returns:
        The JSON files written.

    Raises:
        InputError: If a result names a path of the machine that is not below the runs' own root.
    """
    written = []
    for foundation, names in experiments().items():
        for name in names:
            source = runs / foundation / name / "result.json"
            if not source.is_file():
                print(f"not finished: {foundation}/{name}", file=sys.stderr)
                continue
            result = portable(json.loads(source.read_text("utf-8")), runs.resolve().parents[1])
            file = results / foundation / f"{name}.json"
            text = json.dumps(result, indent=1) + "\n"
            if len(text) > LARGEST:
                text = json.dumps(without_scores(result), indent=1) + "\n"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text)
            written.append(file)
    return written


def portable(value: Any, root: Path) -> Any:
    """Write paths as recipes do, relative to the folder where the runs were started.

    Args:
        value: A result, or a part of one.
        root: That folder.

    Returns:
        The same without absolute paths.

    Raises:
        InputError: If a path lies elsewhere.
    """
    if isinstance(value, dict):
        return {key: portable(part, root) for key, part in value.items()}
    if isinstance(value, list):
        return [portable(part, root) for part in value]
    if isinstance(value, str) and Path(value).is_absolute():
        if not Path(value).is_relative_to(root):
            raise InputError(
                f"a result names {value}, which is not below {root}: a committed result cannot "
                "name a path of one machine; run it from the project's root, with relative paths"
            )
        return Path(value).relative_to(root).as_posix()
    return value


def without_scores(result: Result) -> Result:
    """Leave out what each value tried on the samples scored: no table or figure shows it."""
    rows = [
        {**row, "choice": row["choice"] and {**row["choice"], "scores": []}}
        for row in result["rows"]
    ]
    return {**result, "rows": rows}


def load(results: Path = RESULTS) -> dict[str, dict[str, Result]]:
    """Read what is kept: by foundation and experiment, in the order of the plans."""
    kept = {
        foundation: {
            name: json.loads(file.read_text("utf-8"))
            for name in names
            if (file := results / foundation / f"{name}.json").is_file()
        }
        for foundation, names in experiments().items()
    }
    return {foundation: found for foundation, found in kept.items() if found}

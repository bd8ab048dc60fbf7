"""Experts with labels of their own: shared rows of the head against separate ones.

    python recipes/experiments/offline/build.py
    python recipes/experiments/labels.py [--folder FOLDER] [--seeds 0 1 2]

EfficientNet-Lite0 at 64x64, pre-trained on ImageNet, fine-tuned for sets of labels, each expert
with a head of its own, drawn anew (as on the Hub). For each case every placement of the labels that
it allows is coded by averaging and by COIN, with and without `layerwise` (four copies), P = 200
samples, at most 500 test images an expert:

- `name`: labels of one name share a row, all others have rows of their own;
- `separate`: every label of every expert has a row, so that decoding needs the coded model alone;
- `position`: class k with class k, where all experts have as many classes.

Writes `results/labels.json` beside this file, and from it the tables of `labels.md`. What is there
already is not made again: the same command goes on after a stop.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from coin_hf.comparison.compare import compare
from coin_hf.comparison.statistics import average_of
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.recipe import Recipe
from coin_hf.repository.atomic import write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "experiments" / "labels.md"
DATA = Path("runs/offline/data")
FOUNDATION = Path("runs/offline/foundations/lite0")

DIGITS = {
    "0-4": range(5), "5-9": range(5, 10), "0-5": range(6), "4-9": range(4, 10), "0-9": range(10),
    "0-3": range(4), "3-6": range(3, 7), "6-9": range(6, 10),
}  # fmt: skip
"""Experts on MNIST, by name; one more, `fashion`, knows the ten classes of Fashion-MNIST."""
CASES: dict[str, tuple[str, ...]] = {
    "0-4, 5-9": ("0-4", "5-9"),
    "0-5, 4-9": ("0-5", "4-9"),
    "0-9, 0-4": ("0-9", "0-4"),
    "0-3, 3-6, 6-9": ("0-3", "3-6", "6-9"),
    "0-9, fashion": ("0-9", "fashion"),
}
CODERS: list[dict[str, Any]] = [
    {"coder": "averaging"},
    {"coder": "coin"},
    {
        "coder": "averaging",
        "name": "averaging + layerwise",
        "refine": ["layerwise"],
        "augment": {"copies": 4},
    },
    {
        "coder": "coin",
        "name": "COIN + layerwise",
        "refine": ["layerwise"],
        "augment": {"copies": 4},
    },
]
TRAINING = ["--epochs", "3", "--lr", "3e-4", "--batch-size", "32", "--image-size", "64"]


def make(folder: Path) -> None:
    """Write a dataset for each set of labels, and fine-tune an expert on it."""
    for seed, name in enumerate([*DIGITS, "fashion"]):
        data, expert = folder / "data" / name, folder / "experts" / name
        if not data.exists():
            _write_data(name, data)
        if not (expert / "config.json").exists():
            options = ["--dataset", data, "--model", FOUNDATION, "--head-seed", seed, *TRAINING]
            command = [sys.executable, HERE.parent / "finetune.py", *options, "--output", expert]
            subprocess.run([str(part) for part in command], check=True)


def _write_data(name: str, folder: Path) -> None:
    """Write the rows of some labels, whose numbers are those of the expert's own head."""
    source = DATA / ("fashion_mnist" if name == "fashion" else "mnist")
    draft = folder.with_name(f".{name}")
    draft.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = datasets.load_dataset("parquet", data_dir=str(source), split=split)
        names = rows.features["label"].names
        kept = list(DIGITS.get(name, range(len(names))))
        rows = rows.filter(lambda label, kept=kept: label in kept, input_columns="label")
        numbers = [kept.index(label) for label in rows["label"][:]]
        features = rows.features | {"label": datasets.ClassLabel(names=[names[k] for k in kept])}
        rows = rows.remove_columns("label").add_column("label", numbers)
        rows.cast(datasets.Features(features)).to_parquet(draft / f"{split}-00000-of-00001.parquet")
    draft.rename(folder)


def placements(experts: Sequence[str]) -> list[str]:
    """Return the placements of labels that a case allows."""
    sizes = [len(DIGITS.get(name, range(10))) for name in experts]
    return ["name", "separate", *(["position"] if len(set(sizes)) == 1 else [])]


def recipes(folder: Path, seeds: Sequence[int]) -> Iterator[tuple[str, str, Recipe]]:
    """Yield case, placement and recipe."""
    for case, names in CASES.items():
        for classes in placements(names):
            place = f"{case.replace(', ', '_')}-{classes}"
            yield (
                case,
                classes,
                Recipe.from_dict(
                    {
                        "experts": [
                            {"model": str(folder / "experts" / name), "dataset": name}
                            for name in names
                        ],
                        "datasets": {name: {"path": str(folder / "data" / name)} for name in names},
                        "classes": classes,
                        "race": False,
                        "fisher": {"estimator": "exact"},
                        "samples": {"per_expert": 200 // len(names)},
                        "compare": {"coders": CODERS, "seeds": list(seeds)},
                        "evaluation": {"split": "test", "batch_size": 64, "limit": 500},
                        "output": str(folder / "compared" / place),
                    }
                ),
            )


def measure(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Compare the coders for every case and placement, and keep what the page shows."""
    found = []
    for case, classes, recipe in recipes(folder, seeds):
        said = compare(recipe, progress=True)
        found.append({"case": case, "classes": classes, **_kept(said)})
        print(case, classes, [(row["name"], row["mean_nda"]) for row in said["rows"]], flush=True)
    return found


def _kept(said: dict[str, Any]) -> dict[str, Any]:
    first = said["rows"][0]["erasures"]
    return {
        "num_classes": said["num_classes"],
        "experts": [
            {key: erasure[key] for key in ("missing", "points", "expert_accuracy")}
            for erasure in first
        ],
        "no coded model": average_of([e["scores"]["no coded model"]["nda"] for e in first]),
        "rows": [
            {key: row[key] for key in ("name", "seed", "mean_nda", "agreement", "coding_loss")}
            for row in said["rows"]
        ],
        "run": said["run"],
    }


def needed(case: str, classes: str) -> str:
    """Return how many networks answer when decoding each expert of a case."""
    names = CASES[case]
    if classes == "separate":
        return "1"
    if classes == "position":
        return str(len(names))
    union: list[str] = []
    rows = []
    for name in names:
        own = [f"{'f' if name == 'fashion' else 'd'}{k}" for k in DIGITS.get(name, range(10))]
        union += [label for label in own if label not in union]
        rows.append([union.index(label) for label in own])
    sets = LabelSets(rows=tuple(map(tuple, rows)), count=len(union))
    counts = [len(sets.sharing(i)) + 1 for i in range(len(names))]
    return " or ".join(map(str, sorted(set(counts))))


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Render the cases: NDA, agreement and coding loss by coder and placement."""
    names = [each.get("name", each["coder"]) for each in CODERS]
    head = ["labels", "rows", "K", "networks", "no coded model", *names]
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|" + "---:|" * len(names)]
    for case in cases:
        cells = []
        for name in names:
            rows = [row for row in case["rows"] if row["name"] == name]
            parts = [
                average_of([row[key] for row in rows])
                for key in ("mean_nda", "agreement", "coding_loss")
            ]
            nda, agreement, loss = (float("nan") if part is None else part for part in parts)
            cells.append(f"{nda:.1f} / {100 * agreement:.1f} / {loss:.3g}")
        alone = case["no coded model"]
        lines.append(
            f"| {case['case']} | `{case['classes']}` | {case['num_classes']} "
            f"| {needed(case['case'], case['classes'])} "
            f"| {'-' if alone is None else f'{alone:.1f}'} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def render(cases: Sequence[dict[str, Any]], page: Path) -> None:
    """Put the table into the page, between its marks."""
    begin, end = "<!-- labels: begin -->", "<!-- labels: end -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    text = f"{head}{begin}\n{table(cases)}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Make, measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/labels"), help="where to work")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    file = RESULTS / "labels.json"
    if not given.render:
        make(given.folder)
        cases = measure(given.folder, given.seeds)
        write_whole(file, json.dumps(cases, indent=1) + "\n")
    render(json.loads(file.read_text(encoding="utf-8")), PAGE)


if __name__ == "__main__":
    main()

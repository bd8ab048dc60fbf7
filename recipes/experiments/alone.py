"""When subtracting the other experts' answers is worth running them: the coded model alone.

    python recipes/experiments/alone.py [--folder FOLDER]

ResNet18 at 32x32 on scikit-learn's handwritten digits, from one shared start, as in `coin-hf demo`.
Experts split the labels (two, four), or share them: two halves of the same data, or the digits and
the digits inverted. P = 200 samples, one seed, COIN without and with `layerwise`, whose copies are
four. Writes `results/alone.json` beside this file, and from it the table of `alone.md`; cases that
are there are not run again.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import ImageOps

from coin_hf.demo.run import FINE_TUNING, make_digits, make_experts
from coin_hf.experts.expert import load_expert
from coin_hf.experts.finetuning import fit, freeze_batch_norm
from coin_hf.networks.inputs import stack
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe
from coin_hf.repository.atomic import write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "alone.json"
PAGE = HERE.parents[1] / "docs" / "pages" / "experiments" / "alone.md"
ARCHITECTURE = "resnet18"
GROUPS = {
    "0-4": range(5), "5-9": range(5, 10),
    "0-2": range(3), "3-4": range(3, 5), "5-7": range(5, 8), "8-9": range(8, 10),
}  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    "labels 0-4, 5-9": ("0-4", "5-9"),
    "labels 0-2, 3-4, 5-7, 8-9": ("0-2", "3-4", "5-7", "8-9"),
    "all labels, two halves of the data": ("half-a", "half-b"),
    "all labels, digits and inverted digits": ("plain", "inverted"),
}
METHODS = ("coin", "coded model alone", "coded alone, own labels", "no coded model")


def _inverted(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "image": ImageOps.invert(row["image"])}


def make(folder: Path) -> None:
    """Make datasets and experts below a folder."""
    make_digits(folder / "digits")
    make_experts(folder / "digits", folder / "experts", ARCHITECTURE, GROUPS)
    data = datasets.load_dataset("parquet", data_dir=str(folder / "digits"))
    half = len(data["train"]) // 2
    train, test = data["train"], data["test"]
    parts: dict[str, dict[str, Any]] = {
        "half-a": {"train": train.select(range(half)), "test": test},
        "half-b": {"train": train.select(range(half, len(train))), "test": test},
        "plain": {"train": train, "test": test},
        "inverted": {"train": train.map(_inverted), "test": test.map(_inverted)},
    }
    start = load_expert(str(folder / "experts" / "start"))
    for name, splits in parts.items():
        (folder / name).mkdir()
        for split, rows in splits.items():
            rows.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
        expert = copy.deepcopy(start)
        freeze_batch_norm(expert.model.eval().requires_grad_(True))
        x = stack([expert.preprocessing(image) for image in splits["train"]["image"]])
        y = torch.tensor(splits["train"]["label"][:])

        def batches(_: int, x: Any = x, y: Any = y) -> Any:
            for rows in torch.randperm(len(x)).split(32)[: len(x) // 32]:
                yield x[rows], y[rows]

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fit(
                expert.model,
                batches,
                epochs=FINE_TUNING.epochs,
                lr=FINE_TUNING.lr,
                weight_decay=0.01,
                batches=len(x) // 32,
                title=name,
            )
        expert.model.requires_grad_(False)
        expert.save_pretrained(folder / "experts" / name)


def recipe_for(folder: Path, names: tuple[str, ...], *, refined: bool) -> Recipe:
    """Write a case's recipe."""
    sets: dict[str, Any] = {
        name: {"path": str(folder / "digits"), "labels": list(GROUPS[name])}
        if name in GROUPS
        else {"path": str(folder / name)}
        for name in names
    }
    return Recipe.from_dict(
        {
            "experts": [{"model": str(folder / "experts" / n), "dataset": n} for n in names],
            "datasets": sets,
            "samples": {"per_expert": 200 // len(names), "seed": 0},
            "refine": ["layerwise"] if refined else [],
            "augment": {"copies": 4} if refined else None,
            "evaluation": {"split": "test", "batch_size": 64},
        }
    )


def measure(folder: Path) -> None:
    """Encode the cases that are not there yet."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if any(case not in found for case in CASES) and not (folder / "experts").exists():
        make(folder)
    for case, names in CASES.items():
        if case in found:
            continue
        found[case] = {}
        for title, refined in (("COIN", False), ("COIN + layerwise", True)):
            result = encode(recipe_for(folder, names, refined=refined), progress=True).result.dump()
            accuracy = [e["expert_accuracy"] for e in result["erasures"]]
            means = {method: result["mean_nda"].get(method) for method in METHODS}
            found[case][title] = {"accuracy": accuracy, "nda": means, "run": result["run"]}
        write_whole(RESULTS, json.dumps(found, indent=1) + "\n")


def table() -> str:
    """Render the committed results."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| experts | their accuracy | coder "
        "| decoded | alone | alone, own labels | no coded model |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for case, coders in found.items():
        for title, each in coders.items():
            right = ", ".join(f"{100 * value:.1f}" for value in each["accuracy"])
            ndas = ("same" if v is None else f"{v:.1f}" for v in each["nda"].values())
            lines.append(f"| {case} | {right} | {title} | {' | '.join(ndas)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work; kept, and used again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        measure(given.folder or Path(place))
    begin, end = "<!-- alone: begin -->", "<!-- alone: end -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{head}{begin}\n{table()}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()

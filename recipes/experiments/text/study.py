"""MiniLM experts of different tasks and label sets, at a good and at a high learning rate.

    python recipes/experiments/text/build_text.py
    python recipes/experiments/text/study.py [--folder FOLDER] [--seeds 0 1 2]

MiniLM-L6 is fine-tuned, all its parameters, for each dataset of a case, with a head of its own. The
good rate of a dataset is that of `RATES` with the best validation accuracy; the high rate is the
first of `HIGH` whose validation accuracy is at most `LOSS` lower: experts that still work, but have
moved farther from their start. Then averaging and COIN are compared, with and without `layerwise`,
on P = 200 samples and at most 500 test texts an expert. No choice sees test data. One case is run
with LoRA adapters of rank 8 too, at one rate that was not chosen.

Writes `results.json` beside this file, and from it the tables of its page. What is there already
is not made again: the same command goes on after a stop.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetuning import MAX_LENGTH, SAID, finetune

from coin_hf.comparison.compare import compare
from coin_hf.comparison.statistics import average_of
from coin_hf.recipe import Recipe
from coin_hf.repository.atomic import write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[2] / "docs" / "pages" / "experiments" / "text.md"
DATA, FOUNDATION = Path("runs/text/data"), Path("runs/text/foundations/minilm")

DATASETS = ("movies", "tweets", "things", "topics")
CASES: dict[str, tuple[str, str]] = {
    "movies, tweets": ("movies", "tweets"),
    "movies, things": ("movies", "things"),
    "things, topics": ("things", "topics"),
}
LABELS = {
    "movies, tweets": "the same 2",
    "movies, things": "2 and 8, none shared",
    "things, topics": "8 and 8, 4 shared",
}
ADAPTED = "things, topics"
"""The case that is run with adapters too."""
ADAPTERS = 1e-3
"""The adapters' learning rate."""
RATES, HIGH = (1e-4, 2e-4), (5e-4, 3e-4)
"""Learning rates: the good one is among the first, the high one among the others."""
LOSS = 0.05
"""What an expert of the high rate may lose in validation accuracy, as a share."""
FISHER = {"estimator": "probe", "probes": 4}
"""How the Fisher is estimated: exactly for as few classes as probes."""
CODERS: list[dict[str, Any]] = [
    {"coder": "averaging"},
    {"coder": "coin"},
    {"coder": "averaging", "name": "averaging + layerwise", "refine": ["layerwise"]},
    {"coder": "coin", "name": "COIN + layerwise", "refine": ["layerwise"]},
]


def train(folder: Path, name: str, rate: float) -> dict[str, Any]:
    """Fine-tune an expert for a dataset; what it says of its training."""
    expert = place(folder, name, rate)
    said = finetune(FOUNDATION, DATA / name, expert, rate=rate, seed=DATASETS.index(name))
    return {"dataset": name, **said}


def train_adapter(folder: Path, name: str) -> dict[str, Any]:
    """Fine-tune a LoRA adapter for a dataset; what it says of its training."""
    seed, expert = DATASETS.index(name), folder / "experts" / f"{name}-adapter"
    said = finetune(FOUNDATION, DATA / name, expert, rate=ADAPTERS, seed=seed, adapter=True)
    return {"dataset": name, **said}


def adapted(folder: Path, seeds: Sequence[int]) -> Recipe:
    """Return the recipe of the case with adapters."""
    plain = recipe(folder, ADAPTED, "adapters", dict.fromkeys(DATASETS, ADAPTERS), seeds).dump()
    for expert in plain["experts"]:
        expert["model"] = str(folder / "experts" / f"{expert['name']}-adapter")
        expert["base"] = str(FOUNDATION)
    return Recipe.from_dict(plain)


def place(folder: Path, name: str, rate: float) -> Path:
    """Return an expert's folder."""
    return folder / "experts" / f"{name}-{rate:.0e}"


def recipe(
    folder: Path, case: str, title: str, rates: Mapping[str, float], seeds: Sequence[int]
) -> Recipe:
    """Return a case's recipe.

    Args:
        folder: Where to work.
        case: The case.
        title: Which rates these are.
        rates: Learning rate of each dataset's expert.
        seeds: Seeds of the samples' draws.

    Returns:
        The recipe.
    """
    return Recipe.from_dict(
        {
            "experts": [
                {"model": str(place(folder, name, rates[name])), "dataset": name, "name": name}
                for name in CASES[case]
            ],
            "datasets": {
                name: {"path": str(DATA / name), "text": "text", "max_length": MAX_LENGTH}
                for name in CASES[case]
            },
            "classes": "name",
            "race": False,
            "fisher": FISHER,
            "samples": {"per_expert": 100},
            "compare": {"coders": CODERS, "seeds": list(seeds)},
            "evaluation": {"split": "test", "batch_size": 50, "limit": 500},
            "output": str(folder / "compared" / f"{case.replace(', ', '_')}-{title}"),
        }
    )


def good_rates(folder: Path) -> dict[str, float]:
    """Return each dataset's rate of the best validation accuracy; of equal ones the lower."""
    return {
        name: max(RATES, key=lambda rate: train(folder, name, rate)["accuracy"])
        for name in DATASETS
    }


def high_rate(folder: Path, name: str, good: float) -> float:
    """Return a dataset's high rate; the good one, if at none of the higher ones it works.

    Args:
        folder: Where to work.
        name: The dataset.
        good: Its good rate.

    Returns:
        The first of `HIGH` at which validation accuracy is at most `LOSS` below the good one's.
    """
    least = train(folder, name, good)["accuracy"] - LOSS
    works = (rate for rate in HIGH if train(folder, name, rate)["accuracy"] >= least)
    return next(works, good)


def measure(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Make the experts, compare the coders for every case, and keep what the page shows."""
    good = good_rates(folder)
    high = {name: high_rate(folder, name, rate) for name, rate in good.items()}
    print("good", good, "high", high, flush=True)
    cases = []
    for title, rates in (("high", high), ("good", good)):
        for case, pair in CASES.items():
            said = compare(recipe(folder, case, title, rates, seeds), progress=True)
            experts = [train(folder, name, rates[name]) for name in pair]
            cases.append({"case": case, "rate": title, **_kept(said, experts)})
            print(case, title, [(r["name"], r["mean_nda"]) for r in said["rows"]], flush=True)
    experts = [train_adapter(folder, name) for name in CASES[ADAPTED]]
    said = compare(adapted(folder, seeds), progress=True)
    cases.append({"case": ADAPTED, "rate": "adapters", **_kept(said, experts)})
    print("adapters", [(r["name"], r["mean_nda"]) for r in said["rows"]], flush=True)
    trainings = [
        train(folder, name, rate)
        for name in DATASETS
        for rate in (*RATES, *HIGH)
        if (place(folder, name, rate) / SAID).is_file()
    ]
    cases.sort(key=lambda each: (list(CASES).index(each["case"]), each["rate"]))
    return {"good": good, "high": high, "trainings": trainings, "cases": cases}


def _kept(said: Mapping[str, Any], experts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = said["rows"][0]["erasures"]
    keys = ("name", "seed", "value", "mean_nda", "agreement", "coding_loss", "seconds")
    alone = [e["scores"].get("no coded model") for e in first]
    return {
        "num_classes": said["num_classes"],
        "samples": said["rows"][0]["samples"],
        "experts": [
            {**expert, "points": erasure["points"], "test_accuracy": erasure["expert_accuracy"]}
            for expert, erasure in zip(experts, first, strict=True)
        ],
        "no coded model": average_of([each["nda"] for each in alone if each]),
        "rows": [
            {key: row[key] for key in keys}
            | {"nda": [e["scores"][row["name"]]["nda"] for e in row["erasures"]]}
            for row in said["rows"]
        ],
        "run": said["run"],
    }


def names() -> list[str]:
    """Return the coders' names, in order."""
    return [each.get("name", each["coder"]) for each in CODERS]


def coders_table(cases: Sequence[Mapping[str, Any]]) -> str:
    """Render NDA, agreement and coding loss by case and coder, as means over the seeds."""
    head = ["experts", "labels", "K", "learning rate", "no coded model", *names()]
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---|---:|" + "---:|" * len(names())]
    for case in cases:
        cells = []
        for name in names():
            rows = [row for row in case["rows"] if row["name"] == name]
            nda, agreement, loss = (
                sum(row[key] for row in rows) / len(rows)
                for key in ("mean_nda", "agreement", "coding_loss")
            )
            cells.append(f"{nda:.1f} / {100 * agreement:.1f} / {loss:.3g}")
        alone = case["no coded model"]
        lines.append(
            f"| {case['case']} | {LABELS[case['case']]} | {case['num_classes']} | {case['rate']} "
            f"| {'-' if alone is None else f'{alone:.1f}'} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def experts_table(cases: Sequence[Mapping[str, Any]]) -> str:
    """Render how every expert was trained, and what it can."""
    head = "dataset", "learning rate", "steps", "validation accuracy", "test texts", "test accuracy"
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|"]
    known = {(e["dataset"], e["rate"]): e for case in cases for e in case["experts"]}
    for name, rate in sorted(known, key=lambda key: (DATASETS.index(key[0]), key[1])):
        expert = known[name, rate]
        lines.append(
            f"| {name} | {rate:g} | {expert['steps']} | {100 * expert['accuracy']:.1f} "
            f"| {expert['points']} | {100 * expert['test_accuracy']:.1f} |"
        )
    return "\n".join(lines)


def render(found: Mapping[str, Any], page: str) -> str:
    """Put the tables into the page, between their marks.

    Args:
        found: The results.
        page: The page's text.

    Returns:
        The text with both tables.
    """
    tables = {"coders": coders_table(found["cases"]), "experts": experts_table(found["cases"])}
    for mark, table in tables.items():
        head, begin, rest = page.partition(f"<!-- {mark} -->")
        _, end, rest = rest.partition(f"<!-- /{mark} -->")
        page = f"{head}{begin}\n{table}\n{end}{rest}"
    return page


def main() -> None:
    """Make, measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/text"), help="where to work")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    if not given.render:
        found = measure(given.folder, given.seeds)
        write_whole(RESULTS, json.dumps(found, indent=1) + "\n")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(render(found, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

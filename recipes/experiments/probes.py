"""What random probes and racing cost in NDA, agreement and coding loss, on real experts.

    sh recipes/experiments/offline/run_all.sh --only table1 --only table2   # makes the experts
    python recipes/experiments/probes.py [--foundations lite0] [--seeds 0 1 2]
    python recipes/experiments/probes.py --render                           # the page alone

The twelve columns of the offline tables: six pairs of experts on two foundations, P = 200 samples.
For each draw of the samples COIN codes with the exact Fisher and with 1, 2 and 4 probes a sample,
and task arithmetic runs beside. Every candidate of lambda and alpha is tried on all samples, and on
the first few of each draw: so every race can be told from the scores, without running it. Test
data measures the values that the full choice or a race takes; nothing is chosen by it.

Writes `results/probes_offline.json` beside this file, and from it the tables of `probes.md`. What
is there already is not measured again, pairs whose experts are not made yet are left out and said:
the same command goes on later.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from coin_hf.coders import average
from coin_hf.encoding.context import EncodingContext, RunContext
from coin_hf.encoding.cost import machine, timed
from coin_hf.encoding.fitted_coder import FittedCoder, fit_coder
from coin_hf.encoding.inputs import draw, load_experts, open_tests
from coin_hf.encoding.pinning import resolve
from coin_hf.encoding.selection import FEW, criterion, finalists, measure
from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.erasures import evaluate_erasures
from coin_hf.experts.coded_model import build_all_coded, set_values
from coin_hf.experts.expert import Expert
from coin_hf.recipe import Recipe
from coin_hf.recipe.compare_blocks import Contender
from coin_hf.records.measurements import Choice, Scores
from coin_hf.repository.atomic import write_whole
from coin_hf.repository.provenance import environment

HERE = Path(__file__).parent
OFFLINE = HERE / "offline"
RESULTS = HERE / "results" / "probes_offline.json"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "experiments" / "probes.md"
Case = dict[str, Any]
"""What was measured on one draw of the samples of one pair."""

FOUNDATIONS = {"lite0": "EfficientNet-Lite0", "resnet50": "ResNet50"}
CONTENDERS = {
    "exact": {"coder": "coin", "fisher": {"estimator": "exact"}},
    **{
        f"{m} probe{'s' * (m > 1)}": {
            "coder": "coin",
            "fisher": {"estimator": "probe", "probes": m},
        }
        for m in (1, 2, 4)
    },
    "task arithmetic": {"coder": "task_arithmetic"},
}
FISHERS = tuple(CONTENDERS)[:4]
MEASURES = ("nda", "agreement", "coding_loss")
FEWS = (5, 10, 20, 30, 50)
"""Samples of each draw that a race begins with."""


def recipes(foundation: str) -> dict[str, Recipe]:
    """Return the recipes of a foundation's table columns, by name."""
    plan = yaml.safe_load((OFFLINE / f"experiments-{foundation}.yaml").read_text("utf-8"))
    old, new = plan.get("instead_of", ""), plan["output"]
    found = {}
    for file in (*plan["tables"]["table1"], *plan["tables"]["table2"]):
        said = yaml.safe_load((OFFLINE / file).read_text("utf-8"))
        moved = yaml.safe_load(yaml.safe_dump(said).replace(old, new)) if old else said
        found[Path(file).stem] = Recipe.from_dict(moved)
    return found


def ready(recipe: Recipe) -> bool:
    """Tell whether a recipe's experts are made."""
    places = [expert.model for expert in recipe.experts] + [recipe.foundation.foundation]
    return all((Path(place) / "config.json").is_file() for place in places)


class Pair:
    """Two experts, their test sets, and their answers there."""

    def __init__(self, recipe: Recipe, run: RunContext) -> None:
        self.recipe, self.run = resolve(recipe), run
        self.experts = load_experts(self.recipe, run)
        self.tests = open_tests(self.recipe, self.experts, run)
        self.known: dict[tuple[int, int], list[Tensor]] = {}

    def measure(self, seed: int) -> Case:
        """Measure every contender on one draw of the samples."""
        drawn = self.recipe.samples.model_copy(update={"seed": seed})
        recipe = self.recipe.model_copy(update={"samples": drawn})
        samples = draw(recipe, self.experts, self.run)
        rows: list[dict[str, Any]] = []
        coded: dict[str, Expert] = {}
        for name, said in CONTENDERS.items():
            changed = recipe.with_coder(Contender.model_validate(said))
            context = EncodingContext(self.run, changed, self.experts, samples)
            seconds: dict[str, float] = {}
            with timed(seconds, "fit"):
                fitted = fit_coder(context)
            row = {"name": name, "seconds": seconds["fit"], **tried(context, fitted)}
            for value in values_taken(row):
                coded[f"{name}: {value:g}"] = coded_model(context, fitted, value)
            rows.append(row)
        scores = self.tested(coded, recipe)
        for row in rows:
            taken = [f"{value:g}" for value in values_taken(row)]
            row["test"] = {value: scores[f"{row['name']}: {value}"] for value in taken}
        return {
            "seed": seed,
            "experts": [expert.model_dump(include={"model", "revision"}) for expert in
                        self.recipe.experts],
            "rows": rows,
            "run": {**machine(self.run, self.experts), "versions": environment()},
        }  # fmt: skip

    def tested(self, coded: Mapping[str, Expert], recipe: Recipe) -> dict[str, dict[str, float]]:
        """Measure coded models on the test sets, by their keys."""
        found = evaluate_erasures(
            {expert.name: expert.model for expert in self.experts},
            {key: [each.model] for key, each in coded.items()},
            ErasureCode(recipe.coding_weights),
            self.tests,
            self.experts[0].preprocessing,
            settings=recipe.evaluation,
            seed=self.recipe.samples.seed,
            known=self.known,
        ).erasures
        return {
            key: {
                measure: statistics.fmean(getattr(one.scores[key], measure) for one in found)
                for measure in MEASURES
            }
            for key in coded
        }


def coded_model(context: EncodingContext, fitted: FittedCoder, value: float) -> Expert:
    """Build the coded model of one value."""
    plain = [average(context.thetas, betas=row) for row in context.rows]
    (coded,) = build_all_coded(context.experts, plain, context.rows)
    set_values(coded.model, fitted.parameters(value, context.rows[0]))
    return coded


def tried(context: EncodingContext, fitted: FittedCoder) -> dict[str, Any]:
    """Score every candidate on all samples, and on the first few of each draw."""
    samples, code = context.samples, ErasureCode(context.rows)
    own, network = context.own(samples), coded_model(context, fitted, fitted.candidates[0])
    parts = {str(few): samples.first(few) for few in FEWS}
    parts["all"] = torch.arange(len(samples))
    scores: dict[str, list[Scores]] = {key: [] for key in parts}
    assert samples.labels is not None
    for value in fitted.candidates:
        set_values(network.model, fitted.parameters(value, context.rows[0]))
        logits = context.logits(network.model, samples)
        for key, at in parts.items():
            known = [each[at] for each in context.expert_logits]
            mine = [mask[at] for mask in own]
            found = measure([logits[at]], known, samples.labels[at], code, own=mine)
            scores[key].append({"value": value, **found})
    return {"scores": scores}


def full(row: Mapping[str, Any]) -> float:
    """Return the value that the full choice takes."""
    return _chosen(row["scores"]["all"])


def raced(row: Mapping[str, Any], few: int, places: int | None = None) -> float:
    """Return the value that a race takes which begins with so many samples of each draw.

    As many candidates go on as coin-hf lets go on, unless `places` says how many.
    """
    scores = row["scores"]
    early = [entry["coding_loss"] for entry in scores[str(few)]]
    final = finalists(scores[str(few)])
    if places is not None:
        final = sorted(sorted(range(len(early)), key=early.__getitem__)[:places])
    return _chosen([scores["all"][i] for i in final])


def _chosen(scores: list[Scores]) -> float:
    return Choice(key="", by=criterion(scores), samples=0, scores=scores).value


def values_taken(row: Mapping[str, Any]) -> list[float]:
    """Return the values that the full choice or a race as coin-hf runs it takes, in order."""
    return sorted({full(row), raced(row, FEW)})


def measure_all(
    folder: Path, foundations: Sequence[str], seeds: Sequence[int], *, said: Callable[[str], None]
) -> None:
    """Measure what is not there yet, seed by seed, a file for each draw of a pair."""
    run = RunContext()
    for foundation in foundations:
        pairs: dict[str, Pair] = {}
        for seed in seeds:
            for name, recipe in recipes(foundation).items():
                file = folder / foundation / f"{name}.{seed}.json"
                if file.exists():
                    continue
                if not ready(recipe):
                    said(f"{foundation}, {name}: left out, its experts are not made yet")
                    continue
                if name not in pairs:
                    pairs[name] = Pair(recipe, run)
                case = {"foundation": foundation, "pair": name, **pairs[name].measure(seed)}
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(case, indent=1) + "\n")
                said(f"{foundation}, {name}, seed {seed}")


def collect(folder: Path) -> list[Case]:
    """Read what was measured, in the order of the tables."""
    return [
        json.loads(file.read_text("utf-8"))
        for foundation in FOUNDATIONS
        for name in recipes(foundation)
        for file in sorted((folder / foundation).glob(f"{name}.*.json"))
    ]


def rows_of(cases: Iterable[Case], name: str) -> list[dict[str, Any]]:
    """Return a contender's rows, in the order of the cases."""
    return [row for case in cases for row in case["rows"] if row["name"] == name]


def at_full(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the test scores of the value that the full choice takes."""
    scores: dict[str, float] = row["test"][f"{full(row):g}"]
    return scores


def probes_table(cases: Sequence[Case]) -> str:
    """Render test NDA, agreement and coding loss by number of probes, pair by pair."""
    lines = [["foundation", "pair", "seeds", *FISHERS]]
    for foundation, title in FOUNDATIONS.items():
        for pair in dict.fromkeys(c["pair"] for c in cases if c["foundation"] == foundation):
            mine = [c for c in cases if (c["foundation"], c["pair"]) == (foundation, pair)]
            cells = []
            for name in FISHERS:
                scores = [at_full(row) for row in rows_of(mine, name)]
                nda, agreement, loss = (statistics.fmean(s[m] for s in scores) for m in MEASURES)
                cells.append(f"{nda:.1f} / {100 * agreement:.1f} / {loss:.3g}")
            lines.append([title, titled(pair), str(len(mine)), *cells])
    return markdown(lines)


def difference_table(cases: Sequence[Case]) -> str:
    """Render what probes change against the exact Fisher, over all draws."""
    lines = [
        ["against the exact Fisher", "NDA", "agreement", "coding loss", "at the same λ", "seconds"]
    ]
    exact = rows_of(cases, "exact")
    for name in FISHERS[1:]:
        rows = rows_of(cases, name)
        pairs = [(at_full(row), at_full(one)) for row, one in zip(rows, exact, strict=True)]
        ndas = [a["nda"] - b["nda"] for a, b in pairs]
        agreements = [100 * (a["agreement"] - b["agreement"]) for a, b in pairs]
        losses = [a["coding_loss"] / b["coding_loss"] for a, b in pairs]
        same = [
            mine["coding_loss"] / other["coding_loss"]
            for row, one in zip(rows, exact, strict=True)
            for mine, other in zip(row["scores"]["all"], one["scores"]["all"], strict=True)
        ]
        shares = [row["seconds"] / one["seconds"] for row, one in zip(rows, exact, strict=True)]
        lines.append(
            [
                name,
                *(f"{statistics.fmean(found):+.2f} ± {spread(found):.2f}" for found in
                  (ndas, agreements)),
                *(f"x {statistics.fmean(found):.3f} ± {spread(found):.3f}" for found in
                  (losses, same)),
                f"x {statistics.median(shares):.2f}",
            ]
        )  # fmt: skip
    return markdown(lines)


def race_table(cases: Sequence[Case]) -> str:
    """Render how often a race takes another value, and what that costs on the samples."""
    lines = [["samples of each draw", "other value", "NDA on all samples", "coding loss there"]]
    two = (FEW, 2)
    kinds: tuple[tuple[str, tuple[str, ...], list[tuple[int, int | None]]], ...] = (
        ("λ", FISHERS, [(few, None) for few in FEWS]),
        ("α", ("task arithmetic",), [*((few, None) for few in FEWS), two]),
    )
    for what, names, races in kinds:
        rows = [row for name in names for row in rows_of(cases, name)]
        for few, places in races:
            taken = [raced(row, few, places) for row in rows]
            found = [
                (_at(row, value), _at(row, full(row)))
                for row, value in zip(rows, taken, strict=True)
            ]
            ndas = [mine["nda"] - other["nda"] for mine, other in found]
            losses = [mine["coding_loss"] / other["coding_loss"] for mine, other in found]
            count = sum(value != full(row) for row, value in zip(rows, taken, strict=True))
            lines.append(
                [
                    f"{what}, {few}" + (", two go on" if places else ""),
                    f"{count} of {len(rows)}",
                    f"{statistics.fmean(ndas):+.2f}, worst {min(ndas):+.2f}",
                    f"x {statistics.fmean(losses):.3f}, worst x {max(losses):.3f}",
                ]
            )
    return markdown(lines)


def tested_table(cases: Sequence[Case]) -> str:
    """Render what the race that coin-hf runs changes on test data."""
    lines = [[f"a race that begins with {FEW}", "draws", "NDA", "agreement", "coding loss"]]
    for what, names in (("λ", FISHERS), ("α", ("task arithmetic",))):
        rows = [row for name in names for row in rows_of(cases, name)]
        found = [(row["test"][f"{raced(row, FEW):g}"], at_full(row)) for row in rows]
        ndas = [mine["nda"] - other["nda"] for mine, other in found]
        agreements = [100 * (mine["agreement"] - other["agreement"]) for mine, other in found]
        losses = [mine["coding_loss"] / other["coding_loss"] for mine, other in found]
        lines.append(
            [
                what,
                str(len(rows)),
                f"{statistics.fmean(ndas):+.2f} ± {spread(ndas):.2f}",
                f"{statistics.fmean(agreements):+.2f} ± {spread(agreements):.2f}",
                f"x {statistics.fmean(losses):.3f} ± {spread(losses):.3f}",
            ]
        )
    return markdown(lines)


def _at(row: Mapping[str, Any], value: float) -> Scores:
    """Return a value's scores on all samples."""
    scores: list[Scores] = row["scores"]["all"]
    return next(entry for entry in scores if entry["value"] == value)


def spread(found: Sequence[float]) -> float:
    """Return the standard deviation over draws."""
    return statistics.stdev(found) if len(found) > 1 else 0.0


def titled(pair: str) -> str:
    """Name a pair of experts as the offline tables do."""
    kind, *names = pair.split("-")
    text = " + ".join({"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}.get(n, "UCI digits")
                      for n in names)  # fmt: skip
    return f"{text}, 0–4 and 5–9" if kind == "table1" else text


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def render(cases: Sequence[Case], page: Path) -> None:
    """Put the tables into the page, between their marks."""
    text = page.read_text(encoding="utf-8")
    tables = {
        "columns": probes_table,
        "difference": difference_table,
        "race": race_table,
        "tested": tested_table,
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{table(cases)}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/probes"), help="where to work")
    parser.add_argument("--foundations", nargs="+", choices=FOUNDATIONS, default=[*FOUNDATIONS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    if not given.render:
        measure_all(
            given.folder,
            given.foundations,
            given.seeds,
            said=lambda text: print(text, file=sys.stderr, flush=True),
        )
        lines = ",\n".join(json.dumps(case) for case in collect(given.folder))
        write_whole(RESULTS, f"[\n{lines}\n]\n")
    render(json.loads(RESULTS.read_text(encoding="utf-8")), PAGE)


if __name__ == "__main__":
    main()

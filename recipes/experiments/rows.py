"""How many rows of a map layerwise refitting needs: coding loss by rows per input of a map.

    sh recipes/experiments/offline/run_all.sh --only table1      # makes the experts
    python recipes/experiments/rows.py [--pairs table1-digits ...] [--foundation lite0]

Plain averages of the experts of the offline tables, refitted with four copies of P = 200 samples,
seed 0. The coding loss is measured on 300 other rows of each training split: neither samples nor
test data. Seconds are of this process's processor time on one thread.

Writes `results/rows.json` beside this file and the table of `rows.md`; goes on where it stopped.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from coin_hf.coders import average
from coin_hf.encoding.context import RunContext
from coin_hf.encoding.fitted_coder import enlarged
from coin_hf.encoding.inputs import draw, load_experts
from coin_hf.encoding.pinning import resolve
from coin_hf.encoding.refinement import HELD_OUT
from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.scores import coding_errors
from coin_hf.experts.coded_model import build_all_coded, set_values
from coin_hf.networks.inputs import take
from coin_hf.networks.logits import logits_of
from coin_hf.recipe import Recipe
from coin_hf.refiners import refit_layers
from coin_hf.repository.atomic import write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "rows.json"
PAGE = HERE.parents[1] / "docs" / "pages" / "experiments" / "rows.md"
PAIRS = ("table1-mnist", "table1-fashion_mnist", "table1-digits")
ROWS = (math.inf, 64, 32, 16, 8)
BETAS, FRESH = ((0.5, 0.5),), 300


def recipe_of(pair: str, foundation: str, samples: dict[str, Any]) -> Recipe:
    """Read an offline table's recipe, without what it compares."""
    said = yaml.safe_load((HERE / "offline" / f"{pair}.yaml").read_text(encoding="utf-8"))
    for expert in said["experts"]:
        expert["model"] = expert["model"].replace("lite0", foundation)
    kept = {key: said[key] for key in ("experts", "datasets", "evaluation")}
    return resolve(Recipe.from_dict({**kept, "samples": samples, "augment": {"copies": 4}}))


@torch.no_grad()
def measure(pair: str, foundation: str) -> dict[str, Any]:
    """Refit one pair's average with each number of rows."""
    run = RunContext()
    recipe = recipe_of(pair, foundation, {"per_expert": 100, "seed": 0})
    experts = load_experts(recipe, run)
    samples = draw(recipe, experts, run)
    other = draw(recipe_of(pair, foundation, {"per_expert": FRESH, "seed": 1000}), experts, run)
    places = [
        k * FRESH + i
        for k, (rows, used) in enumerate(zip(other.rows, samples.rows, strict=True))
        for i, row in enumerate(rows)
        if row not in set(used)
    ]
    fresh = take(other.inputs, places)
    fit, held_out = samples.split(HELD_OUT)
    inputs, models = enlarged(fit, recipe).inputs, [expert.model for expert in experts]
    plain = average([expert.parameters for expert in experts], betas=BETAS[0])
    (coded,) = build_all_coded(experts, [plain], BETAS)
    known = [logits_of(model, fresh, batch_size=64) for model in models]

    def loss() -> float:
        answers = [logits_of(coded.model, fresh, batch_size=64)]
        return coding_errors(known, answers, ErasureCode(BETAS)).mean().item()

    found: dict[str, Any] = {"fresh": len(places), "plain": loss(), "rows": {}}
    for rows in ROWS:
        start = copy.deepcopy(coded.model)
        began = time.process_time()
        multiple = 1e9 if math.isinf(rows) else rows
        refitted = refit_layers(
            start, models, inputs, held_out.inputs, betas=BETAS[0], rows=multiple
        )
        seconds = time.process_time() - began
        set_values(coded.model, refitted)
        found["rows"]["all" if math.isinf(rows) else str(rows)] = {
            "coding_loss": loss(),
            "seconds": seconds,
        }
        set_values(coded.model, plain)
    return found


def table(results: dict[str, Any]) -> str:
    """Render coding loss, relative to all rows, and processor time."""
    names = ["all", *(str(rows) for rows in ROWS[1:])]
    lines = [
        f"| foundation, pair | averaging | {' | '.join(names)} |",
        f"| --- |{' ---: |' * (1 + len(names))}",
    ]
    for key, each in results.items():
        whole = each["rows"]["all"]
        cells = [
            f"{one['coding_loss']:.3f} (x {one['coding_loss'] / whole['coding_loss']:.3f}, "
            f"{one['seconds']:.0f} s)"
            for one in (each["rows"][name] for name in names)
        ]
        lines.append(f"| {key} | {each['plain']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not there yet, then render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--foundation", default="lite0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for pair in given.pairs:
        key = f"{given.foundation}, {pair}"
        if key not in results:
            results[key] = measure(pair, given.foundation)
            write_whole(RESULTS, json.dumps(results, indent=1) + "\n")
    begin, end = "<!-- rows: begin -->", "<!-- rows: end -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    page = f"{head}{begin}\n{table(results)}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page, encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

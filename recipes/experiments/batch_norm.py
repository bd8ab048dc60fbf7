"""Compare ways to merge BatchNorm statistics that differ between experts, on handwritten digits.

    python recipes/experiments/batch_norm.py [--folder FOLDER] [--architectures NAME ...]

Small ResNets at 32x32 from one start that knows all ten digits of scikit-learn, fine-tuned to the
digits 0-4 and 5-9: with BatchNorm frozen, and without, ever longer, so that its statistics
differ. The coded model's statistics are then
- averaged: the beta-weighted mean of means and of variances;
- moments: those of the beta-weighted mixture of the experts' activations,
  mean = sum_i b_i mu_i, var = sum_i b_i (var_i + mu_i^2) - mean^2;
- re-estimated: measured in the coded model on the samples, whatever comes of it;
- guarded: re-estimated, but kept only if the coding loss on held-out samples falls.
Each by COIN and by COIN with layerwise refitting, three seeds of start, experts and samples; lambda
is chosen for each way of merging by itself. A quarter of the samples is held out in every case.

Writes `results/batch_norm.json` beside this file, and from it the tables of `batch_norm.md`.
"""

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from coin_hf.coders import average_buffers
from coin_hf.data.samples import Samples
from coin_hf.demo.run import make_digits
from coin_hf.encoding.context import EncodingContext, RunContext
from coin_hf.encoding.encoder import run_coder
from coin_hf.encoding.inputs import draw, load_experts, open_tests
from coin_hf.encoding.pinning import resolve
from coin_hf.encoding.refinement import refine
from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.erasures import evaluate_erasures
from coin_hf.evaluation.scores import coding_errors
from coin_hf.experts import coded_model
from coin_hf.experts.alignment import differing_statistics
from coin_hf.experts.expert import Expert
from coin_hf.experts.finetuning import fit, freeze_batch_norm, write_timm_expert
from coin_hf.experts.preprocessing import timm_preprocessing
from coin_hf.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "experiments" / "batch_norm.md"
GROUPS = {"low": range(5), "high": range(5, 10)}
INPUT = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
START = {"epochs": 6, "lr": 2e-3}
TUNING = {
    "frozen": {"epochs": 5, "lr": 5e-4},
    "free": {"epochs": 5, "lr": 5e-4},
    "free, long": {"epochs": 15, "lr": 1e-3},
    "free, too long": {"epochs": 20, "lr": 2e-3},
}
"""How experts are fine-tuned, by what happens to BatchNorm; the last two move them far apart."""
BATCH = 32
SEEDS = (0, 1, 2)
WAYS = ("averaged", "moments", "re-estimated", "guarded")
Buffers = Mapping[str, Tensor]


def moments(buffers: Sequence[Buffers], *, betas: Sequence[float]) -> dict[str, Tensor]:
    """Merge BatchNorm statistics as those of the mixture of the experts' activations."""
    merged = average_buffers(buffers, betas=betas)
    for name in merged:
        if name.endswith("running_var"):
            of = name.removesuffix("var") + "mean"
            means = torch.stack([each[of].double() for each in buffers])
            variances = torch.stack([each[name].double() for each in buffers])
            weights = torch.tensor(betas, dtype=torch.double)[:, None]
            mean = (weights * means).sum(0)
            squares = (weights * (variances + means**2)).sum(0)
            merged[name] = (squares - mean**2).to(merged[name])
    return merged


@contextmanager
def merging(way: Callable[..., dict[str, Tensor]]) -> Iterator[None]:
    """Build coded models with statistics merged in another way."""
    module: Any = coded_model
    module.average_buffers = way
    try:
        yield
    finally:
        module.average_buffers = average_buffers


@torch.no_grad()
def reestimate(model: nn.Module, inputs: Any) -> None:
    """Measure a network's BatchNorm statistics on inputs, in place."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that is seen: one batch of all
        norm.train()
    model(inputs)
    model.eval()


def train(model: nn.Module, x: Tensor, y: Tensor, title: str, *, epochs: int, lr: float) -> None:
    """Train in the model's current mode, on full batches."""

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            yield x[rows], y[rows]

    fit(
        model,
        batches,
        epochs=epochs,
        lr=lr,
        weight_decay=0.01,
        batches=len(x) // BATCH,
        title=title,
    )


def make(digits: Path, folder: Path, architecture: str, seed: int) -> None:
    """Train a start and, from it, experts with BatchNorm frozen and not."""
    data = datasets.load_dataset("parquet", data_dir=str(digits), split="train")
    torch.manual_seed(seed)
    start = timm.create_model(architecture, num_classes=10, pretrained_cfg_overlay=INPUT)
    preprocess = timm_preprocessing(start.pretrained_cfg, channels=3)
    x = torch.stack([preprocess(image) for image in data["image"]])  # (n, 3, 32, 32)
    y = torch.tensor(data["label"][:])
    train(start.train(), x, y, "start", **START)  # type: ignore[arg-type]
    for state, training in TUNING.items():
        for name, labels in GROUPS.items():
            expert = copy.deepcopy(start).train(state != "frozen")
            if state == "frozen":
                freeze_batch_norm(expert)
            mine = torch.isin(y, torch.tensor(list(labels)))
            torch.manual_seed(seed)
            train(expert, x[mine], y[mine], name, **training)  # type: ignore[arg-type]
            write_timm_expert(
                folder / state / name,
                expert.eval(),
                architecture,
                label_names=[str(i) for i in range(10)],
                pretrained_cfg={**INPUT, "interpolation": "bicubic"},
                card=f"# {architecture} for the digits {name}\n",
            )


def recipe_for(digits: Path, experts: Path, seed: int, steps: Sequence[str]) -> Recipe:
    """Return the recipe of one case."""
    return Recipe.from_dict(
        {
            "experts": [{"model": str(experts / name), "dataset": name} for name in GROUPS],
            "datasets": {
                name: {"path": str(digits), "labels": list(labels)}
                for name, labels in GROUPS.items()
            },
            "race": False,
            "fisher": {"estimator": "exact"},
            "samples": {"per_expert": 100, "seed": seed, "held_out": 0.25},
            "refine": list(steps),
        }
    )


def loss_on(context: EncodingContext, coded: Sequence[Expert], samples: Samples) -> float:
    """Return the coding loss of the coded model on samples."""
    experts = [context.logits(expert.model, samples) for expert in context.experts]
    answers = [context.logits(each.model, samples) for each in coded]
    return float(coding_errors(experts, answers, ErasureCode(context.rows)).mean())


def code(context: EncodingContext, way: str) -> tuple[list[Expert], dict[str, Any]]:
    """Code with one way of merging statistics; refine if the recipe says so."""
    bare = EncodingContext(
        context.run,
        context.recipe.model_copy(update={"refine": ()}),
        context.experts,
        context.samples,
    )
    with merging(moments if way == "moments" else average_buffers):
        encoded = run_coder(bare)
    coded, said = encoded.coded, {"lam": encoded.value}
    if way in ("re-estimated", "guarded"):
        fitting, held = context.parts
        before = loss_on(context, coded, held)
        kept = copy.deepcopy(coded[0].model.state_dict())
        reestimate(coded[0].model, fitting.inputs)
        after = loss_on(context, coded, held)
        said |= {"before": before, "after": after}
        if way == "guarded" and not after < before:
            coded[0].model.load_state_dict(kept)
    if context.recipe.refine:
        refine(context, coded)
    return coded, said


def measure(folder: Path, architectures: Sequence[str]) -> list[dict[str, Any]]:
    """Make the experts, code them in every way, and measure."""
    digits = folder / "digits"
    if not digits.exists():
        make_digits(digits)
    cases = []
    for architecture in architectures:
        for seed in SEEDS:
            place = folder / f"{architecture}-{seed}"
            if not place.exists():
                make(digits, place, architecture, seed)
            for state in TUNING:
                for steps in ((), ("layerwise",)):
                    recipe = resolve(recipe_for(digits, place / state, seed, steps))
                    run = RunContext()
                    experts = load_experts(recipe, run)
                    samples = draw(recipe, experts, run)
                    context = EncodingContext(run, recipe, experts, samples)
                    made = {way: code(context, way) for way in WAYS}
                    measurement = evaluate_erasures(
                        {expert.name: expert.model for expert in experts},
                        {way: [each.model for each in coded] for way, (coded, _) in made.items()},
                        ErasureCode(context.rows),
                        open_tests(recipe, experts, run),
                        experts[0].preprocessing,
                        settings=recipe.evaluation,
                        seed=seed,
                    )
                    case = {
                        "architecture": architecture,
                        "seed": seed,
                        "statistics": state,
                        "differing": len(differing_statistics(experts)),
                        "refine": list(steps),
                        "said": {way: said for way, (_, said) in made.items()},
                        "erasures": [each.dump() for each in measurement.erasures],
                    }
                    cases.append(case)
                    print(architecture, seed, state, steps, means(case), case["said"], flush=True)
    return cases


def means(case: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Return NDA, agreement and coding loss of each way, averaged over the missing experts."""
    return {
        way: tuple(
            statistics.mean(each["scores"][way][key] for each in case["erasures"])
            for key in ("nda", "agreement", "coding_loss")
        )
        for way in WAYS
    }


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """Render mean and standard deviation over the seeds."""
    lines = [
        "| network | BatchNorm | coder | statistics | NDA (%) | agreement (%) | coding loss |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    keys = {(c["architecture"], c["statistics"], tuple(c["refine"])): None for c in cases}
    for architecture, state, steps in keys:
        mine = [
            case
            for case in cases
            if (case["architecture"], case["statistics"], tuple(case["refine"]))
            == (architecture, state, steps)
        ]
        for way in WAYS:
            nda, agreement, loss = zip(*(means(case)[way] for case in mine), strict=True)
            cells = [
                f"{statistics.mean(values) * scale:.{digits}f} ± "
                f"{statistics.stdev(values) * scale:.{digits}f}"
                for values, scale, digits in ((nda, 1, 1), (agreement, 100, 1), (loss, 1, 2))
            ]
            coder = " + ".join(("COIN", *steps))
            lines.append(f"| {architecture} | {state} | {coder} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render(cases: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Put the table into the page, between its marks."""
    begin, end = "<!-- table: begin -->", "<!-- table: end -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    text = f"{head}{begin}\n{table(cases)}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to work; kept, and used again")
    parser.add_argument("--architectures", nargs="+", default=["test_resnet"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    file = given.results / "batch_norm.json"
    if not given.render:
        with tempfile.TemporaryDirectory() as place:
            cases = measure(given.folder or Path(place), given.architectures)
        given.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    cases = json.loads(file.read_text(encoding="utf-8"))
    print(table(cases))
    if given.results == RESULTS and PAGE.exists():
        render(cases, PAGE)


if __name__ == "__main__":
    main()

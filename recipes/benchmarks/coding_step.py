"""The whole COIN coding step beside the distillation baseline's cost, on ResNet50 at 32x32.

    python recipes/benchmarks/coding_step.py [--threads 1] [--rounds 3] [--full]

Coding by default: two Fishers at P = 200 with `estimator: auto`, which is probes for ten classes,
then lambda from six candidates by a race, the experts' logits computed once. Coding as the paper
does: exact Fishers, and every candidate on all samples. Baseline: the coded model trained to the
mean of the experts' logits, 20 epochs of the same 200 samples, batches of 8, AdamW. Refining: the
step `layerwise` on four fifths of the samples and four copies of them, the rest chooses.

The bound is what two exact Fishers cost at least: stock torch's forward pass and a backward pass to
the input for each logit, nothing squared (see fisher.py).

The networks have random weights and the images are noise: what is measured is cost.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from bench.cases import Case
from bench.machine import describe
from bench.tables import PAGE, coding_table, put, write
from bench.ways import bound
from torch import Tensor, nn

from coin_hf.coders import fisher_average
from coin_hf.data.augmentation import enlarge
from coin_hf.data.samples import Samples
from coin_hf.encoding.selection import FEW, LAM_CANDIDATES, choose
from coin_hf.erasure.code import ErasureCode
from coin_hf.experts.coded_model import set_values
from coin_hf.fisher import diagonal_fisher
from coin_hf.networks.inputs import take
from coin_hf.networks.logits import logits_of
from coin_hf.records.measurements import Choice
from coin_hf.refiners import refit_layers

HERE = Path(__file__).parent
CASE = Case("resnet50-32", 10, 200)
BETAS = (0.5, 0.5)
BATCH = 32
"""Samples of a forward pass."""
EPOCHS, TRAINING_BATCH = 20, 8
COPIES, FIT = 4, 160
"""Changed copies that refining takes, of so many samples."""


def main() -> None:
    """Measure both, then write JSON and page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help=f"train all {EPOCHS} epochs")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "coding_step.json")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(rounds=options.rounds, full=options.full)
    print(coding_table(result))
    write(options.output, result)
    if options.output == HERE / "results" / "coding_step.json":
        put(PAGE, "coding step", coding_table(result))


def measure(*, rounds: int, full: bool) -> dict[str, Any]:
    """Time the coding step and the baseline in turn.

    Args:
        rounds: How often each is timed.
        full: Train every epoch; else one, times their number.

    Returns:
        Plain data: the medians of seconds, and of the ratio within each round.
    """
    experts, samples = two_experts(), draw()
    logits_of(experts[0], samples.inputs, batch_size=BATCH)  # a first run does not count
    measured = [one_round(experts, samples, EPOCHS if full else 1) for _ in range(rounds)]

    def median_of(key: str, other: str) -> float:
        return statistics.median(each[key] / each[other] for each in measured)

    how = "run in full" if full else f"one epoch's time x {EPOCHS}"
    return {
        "case": CASE.key,
        "rounds": rounds,
        "seconds": {key: statistics.median(each[key] for each in measured) for key in measured[0]},
        "probes": signature(diagonal_fisher).parameters["probes"].default,
        "few": FEW,
        "ratios": {key: median_of(key, "distillation") for key in ("coin", "paper", "bound")},
        "refine_ratio": median_of("layerwise", "exact"),
        "distillation": f"{EPOCHS} epochs of {CASE.samples} samples ({how})",
        "machine": describe("cpu"),
    }


def one_round(experts: Sequence[nn.Module], samples: Samples, epochs: int) -> dict[str, float]:
    """Seconds of each step; the training's are those of `EPOCHS` epochs."""
    inputs = CASE.inputs(CASE.samples)
    probed: list[dict[str, Tensor]] = []
    exact: list[dict[str, Tensor]] = []
    targets: list[Tensor] = []
    coded = copy.deepcopy(experts[0])
    seconds = {
        "probed": _timed(lambda: probed.extend(_fishers(experts, samples, "auto"))),
        "raced": _timed(lambda: choose_lam(coded, experts, probed, samples, race=True)),
        "exact": _timed(lambda: exact.extend(_fishers(experts, samples, "exact"))),
        "full": _timed(lambda: choose_lam(coded, experts, exact, samples, race=False)),
    }
    seconds["coin"] = seconds["probed"] + seconds["raced"]
    seconds["paper"] = seconds["exact"] + seconds["full"]
    runs = [bound(copy.deepcopy(expert), CASE) for expert in experts]
    seconds["bound"] = _timed(lambda: [run(inputs) for run in runs])
    seconds["layerwise"] = _timed(lambda: refine(coded, experts, inputs))
    teachers = _timed(lambda: targets.append(mean_logits(experts, samples)))
    trained = _timed(lambda: train(experts[0], inputs, targets[0], epochs))
    seconds["distillation"] = teachers + trained * EPOCHS / epochs
    return seconds


def two_experts() -> list[nn.Module]:
    """Two networks a little apart, as fine-tuning leaves them."""
    first = CASE.model()
    second = copy.deepcopy(first)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in second.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.01 * value.abs().mean())
    return [first, second]


def draw() -> Samples:
    """200 labelled samples, half of them from each expert's data."""
    half, total = CASE.samples // 2, CASE.samples
    generator = torch.Generator().manual_seed(3)
    return Samples(
        inputs=CASE.inputs(total),
        labels=torch.randint(CASE.classes, (total,), generator=generator),
        sources=torch.arange(2).repeat_interleave(half),
        rows=(tuple(range(half)), tuple(range(half))),
    )


def choose_lam(
    coded: nn.Module,
    experts: Sequence[nn.Module],
    fishers: Sequence[dict[str, Tensor]],
    samples: Samples,
    *,
    race: bool,
) -> Choice:
    """Choose lambda as `lam: auto` does, and leave the coded model with it."""
    thetas = [dict(expert.named_parameters()) for expert in experts]

    @torch.no_grad()
    def load_coded(lam: float) -> None:
        set_values(coded, fisher_average(thetas, fishers, betas=BETAS, lam=lam))

    def coded_logits(lam: float, at: Tensor) -> list[Tensor]:
        load_coded(lam)
        return [logits_of(coded, take(samples.inputs, at), batch_size=BATCH)]

    logits = [logits_of(expert, samples.inputs, batch_size=BATCH) for expert in experts]
    code = ErasureCode(BETAS)
    choice = choose("lam", LAM_CANDIDATES, coded_logits, logits, samples, code, race=race)
    load_coded(choice.value)
    return choice


def refine(coded: nn.Module, experts: Sequence[nn.Module], inputs: Tensor) -> dict[str, Tensor]:
    """Refit the coded model layer by layer, as `refine: [layerwise]` with `augment` does."""
    fit, held_out = inputs[:FIT], inputs[FIT:]
    copies = enlarge(fit, copies=COPIES, transforms=["shift", "mixup"], seed=0)
    return refit_layers(coded, experts, torch.cat([fit, *copies]), held_out, betas=BETAS)


def mean_logits(experts: Sequence[nn.Module], samples: Samples) -> Tensor:
    """What the student is to answer, shape (P, K): computed once."""
    logits = [logits_of(expert, samples.inputs, batch_size=BATCH) for expert in experts]
    return ErasureCode(BETAS).encode(logits)[0]


def train(expert: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> None:
    """Train a copy of an expert to the targets, statistics frozen."""
    student = copy.deepcopy(expert)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(4)
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for rows in order.split(TRAINING_BATCH):
            loss = nn.functional.mse_loss(student(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _fishers(
    experts: Sequence[nn.Module], samples: Samples, estimator: Literal["auto", "exact"]
) -> list[dict[str, Tensor]]:
    """Each expert's Fisher on all samples."""
    return [diagonal_fisher(expert, samples.inputs, estimator=estimator) for expert in experts]


def _timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

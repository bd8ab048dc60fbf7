"""From a task to its coded models: the coder's number chosen on the samples, the cost counted."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from coin_hf.coders import average, average_buffers
from coin_hf.encoding.fitted_coder import Offer, Passes, Task, prepare
from coin_hf.encoding.refinement import Refinement, check_steps, parts_of, refine
from coin_hf.encoding.selection import Choice, choose
from coin_hf.erasure.betas import Rows
from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.calibration import Calibration, calibrate
from coin_hf.experts.coded_model import build_coded, load
from coin_hf.experts.expert import Expert
from coin_hf.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Coding:
    """Coded models and how they came about."""

    coded: list[Expert]
    """M of them."""
    recipe: Recipe
    """The recipe, with what was chosen in place of `auto`."""
    key: str | None
    """What the recipe calls the coder's one number (`lam`, `alpha`), if it has one."""
    value: float | None
    """What it was."""
    choice: Choice | None
    """How it was chosen, if it was."""
    passes: Passes
    """What went through the networks."""
    seconds: dict[str, float]
    """Wall time by step."""
    fishers: list[dict[str, Tensor]] | None
    """The experts' Fishers, of the coder that takes them."""
    history: list[dict[str, Any]]
    """What training logged for each epoch; empty for coders that do not train."""
    refinements: list[Refinement]
    """What each step of `refine` did."""

    def dump_choice(self) -> dict[str, Any] | None:
        """Return the choice as plain data, None where there was none."""
        return None if self.choice is None else {"key": self.key, **self.choice.dump()}

    def cost(self) -> dict[str, Any]:
        """Return what the result says of the run: passes, and the log of training."""
        logged = {"history": self.history} if self.history else {}
        return {"passes": asdict(self.passes), **logged}


def code(task: Task) -> Coding:
    """Find the coded parameters.

    Args:
        task: Recipe, experts, samples, processes.

    Returns:
        The coded models, the same in every process.

    Raises:
        InputError: If something is not usable for the recipe's coder.
    """
    seconds: dict[str, float] = {}
    check_steps(task)
    with timed(seconds, "prepare"):
        offer = prepare(task)
    thetas = task.thetas
    plain = [average(thetas, betas=row) for row in task.rows]
    coded = build_all(task.experts, plain, task.rows)  # networks in which to try the candidates
    choice, passes = None, offer.passes
    if len(offer.candidates) > 1:
        with timed(seconds, "choice"):
            choice = _choose(task, offer, coded)
        networks = len(task.experts) + len(offer.candidates) * len(coded)
        passes += Passes(networks * choice.samples)
    value = choice.value if choice else offer.candidates[0]
    with timed(seconds, "parameters"):
        _load_all(coded, offer, value, task.rows)
    if offer.history:  # what is logged costs passes of its own, which no coder needs
        seconds["log"] = round(sum(entry.pop("seconds") for entry in offer.history), 2)
        seconds["parameters"] = round(seconds["parameters"] - seconds["log"], 2)
    refinements: list[Refinement] = []
    if task.recipe.refine:
        with timed(seconds, "refine"):
            refinements, cost = refine(task, coded)
        passes += cost
    return Coding(
        coded,
        _used(task.recipe, value),
        offer.key,
        None if offer.key is None else value,
        choice,
        passes,
        seconds,
        offer.fishers,
        offer.history,
        refinements,
    )


def calibrate_on(task: Task, coded: Sequence[Expert]) -> Calibration:
    """Measure coded models on the samples that choose, or those that no step was fitted to.

    Args:
        task: Experts and samples.
        coded: The M coded models.

    Returns:
        The calibration.
    """
    samples, known = task.parts[1], None
    if task.recipe.refine:
        samples = parts_of(task)[1]
        known = [task.logits(expert.model, samples) for expert in task.experts]
    answers = [task.logits(each.model, samples) for each in coded]
    return calibrate(known or task.expert_logits, answers, ErasureCode(task.rows))


def build_all(
    experts: Sequence[Expert], thetas: Sequence[Mapping[str, Tensor]], rows: Rows
) -> list[Expert]:
    """Make the coded networks from their parameters; each row of betas averages the buffers.

    Args:
        experts: The N experts.
        thetas: Parameters of each of the M coded models.
        rows: Their betas, shape (M, N).

    Returns:
        The coded models.
    """
    buffers = [expert.buffers for expert in experts]
    return [
        build_coded(experts, theta, average_buffers(buffers, betas=row), number=c)
        for c, (theta, row) in enumerate(zip(thetas, rows, strict=True))
    ]


def _load_all(coded: Sequence[Expert], offer: Offer, value: float, rows: Rows) -> None:
    for each, row in zip(coded, rows, strict=True):
        load(each.model, offer.parameters(value, row), {})


def _choose(task: Task, offer: Offer, coded: Sequence[Expert]) -> Choice:
    """Try every candidate on the samples: one forward for each, the experts' logits only once."""
    samples = task.parts[1]

    def coded_logits(value: float) -> list[Tensor]:
        _load_all(coded, offer, value, task.rows)
        return [task.logits(each.model, samples) for each in coded]

    erasure_code, own = ErasureCode(task.rows), task.own(samples)
    return choose(
        offer.candidates, coded_logits, task.expert_logits, samples, erasure_code, own=own
    )


def _used(recipe: Recipe, value: float) -> Recipe:
    """Put what was chosen into the recipe."""
    match recipe.coder:
        case "coin":
            return recipe.model_copy(update={"lam": value})
        case "task_arithmetic":
            block = recipe.foundation.model_copy(update={"alpha": value})
            return recipe.model_copy(update={"task_arithmetic": block})
    return recipe


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Record the wall time of a step.

    Args:
        seconds: Where to.
        step: Under which name.

    Yields:
        Nothing.
    """
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 2)

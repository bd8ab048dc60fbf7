"""Run the coder: choose its hyperparameter, compute the parameters, refine, record the cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coin_hf.coders import average
from coin_hf.encoding.context import EncodingContext, Theta
from coin_hf.encoding.cost import timed
from coin_hf.encoding.fitted_coder import FittedCoder, fit_coder
from coin_hf.encoding.refinement import check_steps, refine, refining_parts
from coin_hf.encoding.selection import choose
from coin_hf.erasure.betas import Rows
from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.calibration import calibrate
from coin_hf.experts.coded_model import build_all_coded, set_values
from coin_hf.experts.expert import Expert
from coin_hf.recipe import Recipe
from coin_hf.records.measurements import Calibration, Choice, Passes, Refinement


@dataclass(frozen=True, eq=False)
class Encoded:
    """Coded models and how they came about."""

    coded: list[Expert]
    """M of them."""
    recipe: Recipe
    """The recipe, with what was chosen in place of `auto`."""
    key: str | None
    """What the recipe calls the coder's hyperparameter (`lam`, `alpha`), if it has one."""
    value: float | None
    """What it was."""
    choice: Choice | None
    """How it was chosen, if it was."""
    passes: Passes
    """What went through the networks."""
    seconds: dict[str, float]
    """Wall time by step."""
    fishers: list[Theta] | None
    """The experts' Fishers, of the coder that takes them."""
    history: list[dict[str, Any]]
    """What training logged for each epoch; empty for coders that do not train."""
    refinements: list[Refinement]
    """What each step of `refine` did."""

    def cost(self) -> dict[str, Any]:
        """Return what the result says of the run: passes, and the log of training."""
        return {"passes": self.passes, "history": self.history or None}


def run_coder(context: EncodingContext) -> Encoded:
    """Find the coded parameters.

    Args:
        context: Recipe, experts, samples, processes.

    Returns:
        The coded models, the same in every process.

    Raises:
        InputError: If something is not usable for the recipe's coder.
    """
    seconds: dict[str, float] = {}
    check_steps(context)
    with timed(seconds, "prepare"):
        fitted = fit_coder(context)
    thetas = context.thetas
    plain = [average(thetas, betas=row) for row in context.rows]
    # Networks in which to try the candidates.
    coded = build_all_coded(context.experts, plain, context.rows)
    value, choice, passes = fitted.candidates[0], None, fitted.passes
    if len(fitted.candidates) > 1:
        with timed(seconds, "choice"):
            choice = _choose(context, fitted, coded)
            value = choice.value
        networks = len(context.experts) + len(fitted.candidates) * len(coded)
        passes += Passes(forward=networks * choice.samples)
    with timed(seconds, "parameters"):
        _load_all(coded, fitted, value, context.rows)
    if fitted.history:  # what is logged costs passes of its own, which no coder needs
        seconds["log"] = round(sum(entry.pop("seconds") for entry in fitted.history), 2)
        seconds["parameters"] = round(seconds["parameters"] - seconds["log"], 2)
    refinements: list[Refinement] = []
    if context.recipe.refine:
        with timed(seconds, "refine"):
            refinements, cost = refine(context, coded)
        passes += cost
    return Encoded(
        coded,
        _used(context.recipe, value),
        fitted.key,
        None if fitted.key is None else value,
        choice,
        passes,
        seconds,
        fitted.fishers,
        fitted.history,
        refinements,
    )


def calibrate_on(context: EncodingContext, coded: Sequence[Expert]) -> Calibration:
    """Measure coded models on the samples that choose, or those that no step was fitted to.

    Args:
        context: Experts and samples.
        coded: The M coded models.

    Returns:
        The calibration.
    """
    samples, known = context.parts[1], None
    if context.recipe.refine:
        samples = refining_parts(context)[1]
        known = [context.logits(expert.model, samples) for expert in context.experts]
    answers = [context.logits(each.model, samples) for each in coded]
    return calibrate(known or context.expert_logits, answers, ErasureCode(context.rows))


def _load_all(coded: Sequence[Expert], fitted: FittedCoder, value: float, rows: Rows) -> None:
    for each, row in zip(coded, rows, strict=True):
        set_values(each.model, fitted.parameters(value, row))


def _choose(context: EncodingContext, fitted: FittedCoder, coded: Sequence[Expert]) -> Choice:
    """Try every candidate on the samples: one forward for each, the experts' logits only once."""
    samples = context.parts[1]

    def coded_logits(value: float) -> list[Tensor]:
        _load_all(coded, fitted, value, context.rows)
        return [context.logits(each.model, samples) for each in coded]

    erasure_code, own = ErasureCode(context.rows), context.own(samples)
    return choose(
        str(fitted.key),
        fitted.candidates,
        coded_logits,
        context.expert_logits,
        samples,
        erasure_code,
        own=own,
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

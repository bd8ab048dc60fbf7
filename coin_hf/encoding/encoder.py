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
    """Coded models and how they were made."""

    coded: list[Expert]
    """The M coded models."""
    recipe: Recipe
    """The recipe, with `auto` replaced by what was chosen."""
    key: str | None
    """The recipe's key for the coder's hyperparameter (`lam`, `alpha`), if it has one."""
    value: float | None
    """Its value."""
    choice: Choice | None
    """How it was chosen, if it was."""
    passes: Passes
    """Samples passed through the networks."""
    seconds: dict[str, float]
    """Wall time by step."""
    fishers: list[Theta] | None
    """The experts' Fishers, for the coder that uses them."""
    history: list[dict[str, Any]]
    """The training log by epoch; empty for coders that do not train."""
    refinements: list[Refinement]
    """The outcome of each step of `refine`."""

    def cost(self) -> dict[str, Any]:
        """Return the cost that the result records: passes, and the training log."""
        return {"passes": self.passes, "history": self.history or None}


def run_coder(context: EncodingContext) -> Encoded:
    """Compute and refine the coded models.

    Args:
        context: Recipe, experts, samples, processes.

    Returns:
        The coded models, the same in every process.

    Raises:
        InputError: If an input is not usable for the recipe's coder.
    """
    seconds: dict[str, float] = {}
    check_steps(context)
    with timed(seconds, "prepare"):
        fitted = fit_coder(context)
    thetas = context.thetas
    plain = [average(thetas, betas=row) for row in context.rows]
    # Networks to try the candidates in.
    coded = build_all_coded(context.experts, plain, context.rows)
    value, choice, passes = fitted.candidates[0], None, fitted.passes
    if len(fitted.candidates) > 1:
        with timed(seconds, "choice"):
            choice = _choose(context, fitted, coded)
            value = choice.value
        by_experts = len(context.experts) * choice.samples
        passes += Passes(forward=by_experts + len(coded) * choice.runs)
    with timed(seconds, "parameters"):
        _load_all(coded, fitted, value, context.rows)
    if fitted.history:  # logging takes passes of its own, which no coder needs
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
    """Calibrate coded models on the samples to choose on or, if refined, on those held out.

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
    return calibrate(
        known or context.expert_logits,
        answers,
        ErasureCode(context.rows, labels=context.label_sets),
    )


def _load_all(coded: Sequence[Expert], fitted: FittedCoder, value: float, rows: Rows) -> None:
    for each, row in zip(coded, rows, strict=True):
        set_values(each.model, fitted.parameters(value, row))


def _choose(context: EncodingContext, fitted: FittedCoder, coded: Sequence[Expert]) -> Choice:
    """Try candidates on the samples, the experts' logits computed once."""
    samples = context.parts[1]

    def coded_logits(value: float, at: Tensor) -> list[Tensor]:
        _load_all(coded, fitted, value, context.rows)
        return [context.logits(each.model, samples, at) for each in coded]

    erasure_code = ErasureCode(context.rows, labels=context.label_sets)
    own = context.own(samples)
    return choose(
        str(fitted.key),
        fitted.candidates,
        coded_logits,
        context.expert_logits,
        samples,
        erasure_code,
        own=own,
        race=context.recipe.race,
    )


def _used(recipe: Recipe, value: float) -> Recipe:
    """Put the chosen hyperparameter into the recipe."""
    match recipe.coder:
        case "coin":
            return recipe.model_copy(update={"lam": value})
        case "task_arithmetic":
            block = recipe.foundation.model_copy(update={"alpha": value})
            return recipe.model_copy(update={"task_arithmetic": block})
    return recipe

"""Refine coded models by the recipe's steps; keep a step only where it helps held-out samples."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from coin_hf.coded import load
from coin_hf.erasure import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation import coding_errors
from coin_hf.experts import Expert
from coin_hf.offers import Passes, Task, enlarged
from coin_hf.recipe import RefineBlock
from coin_hf.refiners import find_head, refit_head, refit_layers
from coin_hf.samples import Samples

HELD_OUT = 0.2
"""Share of each expert's samples that judge the steps, where `samples.held_out` sets none aside."""


@dataclass(frozen=True)
class Refinement:
    """What one step did to one coded model."""

    step: str
    coded: int
    """Number of the coded model."""
    before: float
    """Coding loss of the held-out samples before the step."""
    after: float
    """The same after it."""
    kept: bool
    """Whether the step stays, as it does where `after` is smaller."""
    samples: int
    """How many inputs it was fitted to, copies included."""
    held_out: int
    """How many judged it."""
    seconds: float

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def check_steps(task: Task) -> None:
    """Find out, before anything is computed, whether the recipe's steps can work.

    Args:
        task: The task.

    Raises:
        InputError: If there are too few samples to hold some out, or the networks do not suit.
    """
    if not task.recipe.refine:
        return
    fit, _ = parts_of(task)
    if any(block.step == "head" for block in task.recipe.refine):
        with _named():
            find_head(task.experts[0].model, fit.inputs[:1])


@contextmanager
def _named() -> Iterator[None]:
    """Say what it was that the numeric core refuses."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"refine: {error}") from error


def parts_of(task: Task) -> tuple[Samples, Samples]:
    """Return the samples that refiners are fitted to, without copies, and those held out.

    Args:
        task: The task.

    Returns:
        Both parts.

    Raises:
        InputError: If a part comes to nothing.
    """
    if task.recipe.samples.held_out:
        return task.parts
    try:
        return task.samples.split(HELD_OUT)
    except InputError as error:
        raise InputError(
            f"`refine` holds out a fifth of each expert's samples, and "
            f"{task.recipe.samples.per_expert} are too few: raise `samples.per_expert`"
        ) from error


def refine(task: Task, coded: Sequence[Expert]) -> tuple[list[Refinement], Passes]:
    """Improve coded models in place, step by step.

    Args:
        task: Recipe, experts, samples, processes.
        coded: The M coded models.

    Returns:
        What each step did, coded model by coded model, and the passes it took.

    Raises:
        InputError: If a step cannot work on these networks.
    """
    fit, held_out = parts_of(task)
    more = enlarged(fit, task.recipe)
    known = [task.logits(expert.model, held_out) for expert in task.experts]
    found: list[Refinement] = []
    networks = len(task.experts)
    passes = Passes(networks * len(held_out))
    for c, (each, betas) in enumerate(zip(coded, task.rows, strict=True)):
        before = _loss(task, each, held_out, known, betas)
        passes += Passes(len(held_out))
        for block in task.recipe.refine:
            start = time.perf_counter()
            old = {name: value.clone() for name, value in each.parameters.items()}
            load(each.model, _step(task, block, each, more, held_out, betas), {})
            after = _loss(task, each, held_out, known, betas)
            kept = after < before
            if not kept:
                load(each.model, old, {})
            seconds = round(time.perf_counter() - start, 2)
            numbers = len(more), len(held_out)
            found.append(Refinement(block.step, c, before, after, kept, *numbers, seconds))
            passes += Passes((networks + 1) * len(more) + len(held_out))
            before = after if kept else before
    return found, passes


def _loss(
    task: Task, coded: Expert, samples: Samples, known: Sequence[Tensor], betas: Sequence[float]
) -> float:
    answers = [task.logits(coded.model, samples)]
    loss = coding_errors(known, answers, ErasureCode(betas)).double().mean().item()
    return loss if loss == loss else float("inf")  # a step that ends in no number did not help


def _step(
    task: Task,
    block: RefineBlock,
    coded: Expert,
    samples: Samples,
    held_out: Samples,
    betas: Sequence[float],
) -> dict[str, Tensor]:
    """Return the parameters that a step changes."""
    strength = None if block.strength == "auto" else block.strength
    models = [expert.model for expert in task.experts]
    with _named():
        if block.step == "head":
            answers = [task.logits(model, samples).double() for model in models]
            return refit_head(
                coded.model,
                samples.inputs,
                ErasureCode(betas).encode(answers)[0],
                strength=strength,
                batch_size=task.recipe.evaluation.batch_size,
                accelerator=task.accelerator,
            )
        return refit_layers(
            coded.model,
            models,
            samples.inputs,
            held_out.inputs,
            betas=betas,
            strength=strength,
            accelerator=task.accelerator,
            progress=task.progress,
        )

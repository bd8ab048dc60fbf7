"""Refine coded models by the recipe's steps; keep a step only where it helps held-out samples."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.encoding.fitted_coder import Passes, Task, enlarged
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation.erasures import coding_errors
from coin_hf.experts.coded_model import load
from coin_hf.experts.expert import Expert
from coin_hf.recipe.recipe import RefineBlock
from coin_hf.refiners import Unsuitable, find_head, find_maps, refit_head, refit_layers

HELD_OUT = 0.2
"""Share of each expert's samples that judge the steps, where `samples.held_out` sets none aside."""
GAIN = 1e-3
"""What a step must gain of the loss, or it is dropped."""


@dataclass(frozen=True)
class Refinement:
    """What one step did to one coded model."""

    step: str
    coded: int
    """Number of the coded model."""
    before: float | None
    """Coding loss of the held-out samples before the step; None where it is no number. They are
    held out from the steps; the coder has seen them unless `samples.held_out` sets them aside."""
    after: float | None
    """The same after it."""
    kept: bool
    """Whether the step stays, as it does where `after` is smaller by more than rounding."""
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
    steps = {block.step for block in task.recipe.refine}
    model, sample = task.experts[0].model, fit.inputs[:1]
    with _named():
        if "head" in steps:
            find_head(model, sample)
        if "layerwise" in steps:
            find_maps(model, sample)


@contextmanager
def _named() -> Iterator[None]:
    """Say what it was that the numeric core refuses."""
    try:
        yield
    except Unsuitable as error:
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
            f"{task.recipe.samples.per_expert} are too few: raise `samples.per_expert` to 5 or more"
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
    bench = _Bench(task)
    found: list[Refinement] = []
    for c, (each, betas) in enumerate(zip(coded, task.rows, strict=True)):
        before = bench.loss(each, betas)
        for block in task.recipe.refine:
            start = time.perf_counter()
            old = {name: value.clone() for name, value in each.parameters.items()}
            load(each.model, bench.step(block, each, betas), {})
            after = bench.loss(each, betas)
            kept = after is not None and (before is None or after < (1 - GAIN) * before)
            if not kept:
                load(each.model, old, {})
            seconds = round(time.perf_counter() - start, 2)
            numbers = len(bench.samples), len(bench.held_out)
            found.append(Refinement(block.step, c, before, after, kept, *numbers, seconds))
            before = after if kept else before
    return found, bench.passes


class _Bench:
    """The samples of a task's steps, and the experts' answers on them."""

    def __init__(self, task: Task) -> None:
        fit, self.held_out = parts_of(task)
        self.task, self.samples = task, enlarged(fit, task.recipe)
        self.models = [expert.model for expert in task.experts]
        self.known = [task.logits(model, self.held_out) for model in self.models]
        self.passes = Passes(len(self.models) * len(self.held_out))
        self._answers: list[Tensor] | None = None

    @property
    def answers(self) -> list[Tensor]:
        """The experts' logits on the samples, copies included, each (P, K)."""
        if self._answers is None:
            self._answers = [self.task.logits(m, self.samples).double() for m in self.models]
            self.passes += Passes(len(self.models) * len(self.samples))
        return self._answers

    def loss(self, coded: Expert, betas: Sequence[float]) -> float | None:
        """Return the coding loss of the held-out samples; None where it is no number."""
        answers = [self.task.logits(coded.model, self.held_out)]
        self.passes += Passes(len(self.held_out))
        found = coding_errors(self.known, answers, ErasureCode(betas)).double().mean().item()
        return found if math.isfinite(found) else None

    def step(self, block: RefineBlock, coded: Expert, betas: Sequence[float]) -> dict[str, Tensor]:
        """Return the parameters that a step changes."""
        task, samples = self.task, self.samples
        strength = None if block.strength == "auto" else block.strength
        with _named():
            if block.step == "head":
                self.passes += Passes(len(samples))
                return refit_head(
                    coded.model,
                    samples.inputs,
                    ErasureCode(betas).encode(self.answers)[0],
                    strength=strength,
                    batch_size=task.recipe.evaluation.batch_size,
                    accelerator=task.accelerator,
                )
            networks = len(self.models) + 1
            self.passes += Passes(networks * (len(samples) + len(self.held_out)))
            return refit_layers(
                coded.model,
                self.models,
                samples.inputs,
                self.held_out.inputs,
                betas=betas,
                strength=strength,
                accelerator=task.accelerator,
                progress=task.progress,
            )

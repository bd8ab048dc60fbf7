"""Refine coded models step by step; keep a step only if it helps on held-out samples."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.encoding.context import EncodingContext
from coin_hf.encoding.fitted_coder import enlarged
from coin_hf.encoding.scratch_file import ScratchFile
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation.scores import coding_errors
from coin_hf.experts.coded_model import set_values
from coin_hf.experts.expert import Expert
from coin_hf.networks.inputs import take
from coin_hf.recipe.blocks import RefineBlock
from coin_hf.records.measurements import Passes, Refinement
from coin_hf.refiners import LayerRefits, Unsuitable, find_head, find_maps, refit_head

HELD_OUT = 0.2
"""Share of each expert's samples held out to judge the steps, if `samples.held_out` is 0."""
GAIN = 1e-3
"""Share of the loss that a step must gain, or it is dropped."""


def check_steps(context: EncodingContext) -> None:
    """Check, before any computation, that the recipe's steps can work.

    Args:
        context: The encoding's inputs.

    Raises:
        InputError: If there are too few samples to hold some out, or the networks are unsuitable.
    """
    if not context.recipe.refine:
        return
    fit, _ = refining_parts(context)
    steps = {block.step for block in context.recipe.refine}
    model, sample = context.experts[0].model, take(fit.inputs, slice(0, 1))
    with _explained():
        if "head" in steps:
            find_head(model, sample)
        if "layerwise" in steps:
            find_maps(model, sample)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a refiner's `Unsuitable` into an InputError."""
    try:
        yield
    except Unsuitable as error:
        raise InputError(f"refine: {error}") from error


def refining_parts(context: EncodingContext) -> tuple[Samples, Samples]:
    """Return the samples to fit refiners on, without copies, and those held out.

    Args:
        context: The encoding's inputs.

    Returns:
        Both parts.

    Raises:
        InputError: If a part is empty.
    """
    if context.recipe.samples.held_out:
        return context.parts
    try:
        return context.samples.split(HELD_OUT)
    except InputError as error:
        raise InputError(
            f"`refine` holds out a fifth of each expert's samples, and "
            f"{context.recipe.samples.per_expert} are too few: raise `samples.per_expert` to 5 or "
            "more"
        ) from error


def refine(context: EncodingContext, coded: Sequence[Expert]) -> tuple[list[Refinement], Passes]:
    """Improve coded models in place, step by step.

    Args:
        context: Recipe, experts, samples, processes.
        coded: The M coded models.

    Returns:
        The outcome of each step, coded model by coded model, and the passes used.

    Raises:
        InputError: If a step cannot work on these networks.
    """
    found: list[Refinement] = []
    with _Refiner(context) as refiner:
        for c, (each, betas) in enumerate(zip(coded, context.rows, strict=True)):
            before = refiner.loss(each, betas)
            for block in context.recipe.refine or ():
                start = time.perf_counter()
                old = {name: value.clone() for name, value in each.parameters.items()}
                set_values(each.model, refiner.step(block, each, c))
                after = refiner.loss(each, betas)
                kept = after is not None and (before is None or after < (1 - GAIN) * before)
                if not kept:
                    set_values(each.model, old)
                found.append(
                    Refinement(
                        step=block.step,
                        coded=c,
                        before=before,
                        after=after,
                        kept=kept,
                        samples=len(refiner.samples),
                        held_out=len(refiner.held_out),
                        seconds=round(time.perf_counter() - start, 2),
                    )
                )
                before = after if kept else before
        return found, refiner.passes


class _Refiner:
    """The samples of a run's steps, and the experts' answers on them."""

    def __init__(self, context: EncodingContext) -> None:
        fit, self.held_out = refining_parts(context)
        self.context, self.samples = context, enlarged(fit, context.recipe)
        self.models = [expert.model for expert in context.experts]
        self.known = [context.logits(model, self.held_out) for model in self.models]
        self.passes = Passes(forward=len(self.models) * len(self.held_out))
        self._all = len(self.samples) + len(self.held_out)
        self._answers: list[Tensor] | None = None
        self._layers: LayerRefits | None = None
        self._open = ExitStack()

    def __enter__(self) -> "_Refiner":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def answers(self) -> list[Tensor]:
        """The experts' logits on the samples, copies included, each (P, K)."""
        if self._answers is None:
            self._answers = [self.context.logits(m, self.samples).double() for m in self.models]
            self.passes += Passes(forward=len(self.models) * len(self.samples))
        return self._answers

    def loss(self, coded: Expert, betas: Sequence[float]) -> float | None:
        """Return the coding loss on the held-out samples; None if it is not finite."""
        answers = [self.context.logits(coded.model, self.held_out)]
        self.passes += Passes(forward=len(self.held_out))
        found = coding_errors(self.known, answers, ErasureCode(betas)).double().mean().item()
        return found if math.isfinite(found) else None

    def layers(self, block: RefineBlock, like: Expert) -> LayerRefits:
        """What the experts' maps give together, computed once for all coded models."""
        if self._layers is None:
            self.passes += Passes(forward=len(self.models) * self._all)
            memory = None if block.memory == "auto" else int(block.memory * 2**30)
            made = LayerRefits(
                like.model,
                self.models,
                self.samples.inputs,
                self.held_out.inputs,
                betas=self.context.rows,
                memory=memory,
                scratch=ScratchFile,
                accelerator=self.context.run.accelerator,
                progress=self.context.run.progress,
            )
            self._layers = self._open.enter_context(made)
        return self._layers

    def step(self, block: RefineBlock, coded: Expert, number: int) -> dict[str, Tensor]:
        """Return the parameters that a step changes."""
        context, samples = self.context, self.samples
        strength = None if block.strength == "auto" else block.strength
        with _explained():
            if block.step == "head":
                self.passes += Passes(forward=len(samples))
                betas = context.rows[number]
                return refit_head(
                    coded.model,
                    samples.inputs,
                    ErasureCode(betas).encode(self.answers)[0],
                    strength=strength,
                    batch_size=context.recipe.evaluation.batch_size,
                    accelerator=context.run.accelerator,
                )
            layers = self.layers(block, coded)
            self.passes += Passes(forward=self._all)
            return layers.refit(coded.model, number, strength=strength)

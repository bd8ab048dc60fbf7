"""Fit each coder once to the samples; `parameters(value, betas)` then returns theta_c."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from coin_hf.coders import (
    ALPHA_CANDIDATES,
    average,
    average_buffers,
    distill,
    fisher_average,
    gram_matrices,
    regmean,
    task_arithmetic,
    transposed_weights,
)
from coin_hf.data.augmentation import enlarge
from coin_hf.data.samples import Samples
from coin_hf.encoding.context import EncodingContext, Theta
from coin_hf.encoding.fishers import compute_fishers
from coin_hf.encoding.selection import LAM_CANDIDATES, measure
from coin_hf.encoding.tracking import numbers
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_foundation
from coin_hf.experts.coded_model import set_values
from coin_hf.experts.expert import load_expert
from coin_hf.experts.on_disk import mapped
from coin_hf.fisher import resolve_estimator
from coin_hf.networks.inputs import take
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import TaskArithmeticBlock
from coin_hf.records.measurements import Passes


@dataclass(frozen=True, eq=False)
class FittedCoder:
    """A coder fitted to the samples."""

    parameters: Callable[[float, Sequence[float]], Theta]
    """Hyperparameter and betas, shape (N,) -> theta_c."""
    key: str | None = None
    """The recipe's key for the hyperparameter, if the coder has one."""
    candidates: tuple[float, ...] = (float("nan"),)
    """Its candidate values; if there are several, one is chosen on the samples."""
    passes: Passes = field(default_factory=Passes)
    """The cost, without that of the choice."""
    fishers: list[Theta] | None = None
    """The experts' Fishers, for the coder that uses them."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The training log by epoch, with the seconds that logging took."""


def enlarged(samples: Samples, recipe: Recipe) -> Samples:
    """Append the copies that the recipe's `augment` asks for, unlabelled, in the samples' order.

    Args:
        samples: The samples.
        recipe: The recipe.

    Returns:
        The samples, followed by their copies, if any.

    Raises:
        InputError: If the inputs are not images.
    """
    block = recipe.augment
    if block is None:
        return samples
    if not isinstance(samples.inputs, Tensor):
        raise InputError(
            "augment: only images can be augmented, and these inputs are not: leave `augment` out"
        )
    made = enlarge(
        samples.inputs,
        copies=block.copies,
        transforms=block.transforms,
        seed=recipe.samples.seed,
    )
    count = len(samples)
    inputs = samples.inputs.new_empty((1 + block.copies) * count, *samples.inputs.shape[1:])
    inputs[:count] = samples.inputs
    for number, copy_ in enumerate(made, start=1):
        inputs[number * count : (number + 1) * count] = copy_
    return replace(
        samples,
        inputs=inputs,
        labels=None,
        sources=samples.sources.repeat(1 + block.copies),
    )


def fit_coder(context: EncodingContext) -> FittedCoder:
    """Fit the recipe's coder to the samples.

    Args:
        context: The encoding's inputs.

    Returns:
        The fitted coder.

    Raises:
        InputError: If the experts, the foundation or a setting are not usable for this coder.
    """
    match context.recipe.coder:
        case "coin":
            return _coin(context)
        case "averaging":
            thetas = context.thetas
            return FittedCoder(lambda _, betas: average(thetas, betas=betas))
        case "task_arithmetic":
            return _task_arithmetic(context, context.recipe.foundation)
        case "regmean":
            return _regmean(context)
        case "distillation":
            return _distillation(context)


def check_coder(context: EncodingContext) -> None:
    """Check, before any computation, that the recipe's coder can work.

    Args:
        context: The encoding's inputs.

    Raises:
        InputError: If the foundation or a setting is not usable, or RegMean finds no linear map.
    """
    samples, _ = context.parts
    match context.recipe.coder:
        case "task_arithmetic":
            _foundation(context, context.recipe.foundation)
        case "regmean":
            first, mode = context.experts[0], context.recipe.regmean.mode
            what = f"expert '{first.name}'"
            _explained(what, gram_matrices, first.model, take(samples.inputs, [0]), mode=mode)


def _coin(context: EncodingContext) -> FittedCoder:
    thetas, (samples, _), recipe = context.thetas, context.parts, context.recipe
    fishers = context.fishers
    if fishers is None:
        fishers = compute_fishers(context)
    classes, block = context.experts[0].num_classes, recipe.fisher
    exact = resolve_estimator(classes, block.estimator) == "exact"
    vectors = classes if exact else min(block.probes, classes)
    passed = len(samples) * len(thetas)
    return FittedCoder(
        lambda value, betas: fisher_average(thetas, fishers, betas=betas, lam=value),
        "lam",
        LAM_CANDIDATES if recipe.lam == "auto" else (recipe.lam,),
        Passes(forward=passed, backward=passed * vectors),
        fishers,
    )


def _explained(what: str, compute: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Call `compute`; turn its ValueError into an InputError that names `what`."""
    try:
        return compute(*args, **settings)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error


def _foundation(context: EncodingContext, block: TaskArithmeticBlock) -> Theta:
    first = context.experts[0]
    permuted = [expert.name for expert in context.experts if expert.class_order is not None]
    if permuted:
        raise InputError(
            f"expert '{permuted[0]}' has other classes than the first one, or in another order, so "
            "that they have no common foundation head: use another coder"
        )
    with context.run.main_first():
        foundation = load_expert(
            block.foundation,
            revision=block.revision,
            library=first.library if first.library != "torch" else "auto",
            device=context.run.device,
            name="foundation",
        )
    check_foundation(foundation, first)
    return foundation.parameters


def _task_arithmetic(context: EncodingContext, block: TaskArithmeticBlock) -> FittedCoder:
    thetas, start = context.thetas, _foundation(context, block)
    return FittedCoder(
        lambda value, betas: task_arithmetic(thetas, start, betas=betas, alpha=value),
        "alpha",
        ALPHA_CANDIDATES if block.alpha == "auto" else (block.alpha,),
    )


def _regmean(context: EncodingContext) -> FittedCoder:
    thetas, block = context.thetas, context.recipe.regmean
    samples = enlarged(context.parts[0], context.recipe)
    own = context.own(samples)
    grams = []
    for expert, mine in zip(context.experts, own, strict=True):
        found = _explained(
            f"expert '{expert.name}'",
            gram_matrices,
            expert.model,
            take(samples.inputs, mine),
            mode=block.mode,
            accelerator=context.run.accelerator,
            progress=context.run.progress,
        )
        grams.append(mapped(found, f"the Gram matrices of expert '{expert.name}'"))
    transposed = transposed_weights(context.experts[0].model, samples.inputs)
    return FittedCoder(
        lambda _, betas: regmean(
            thetas, grams, betas=betas, scale=block.scale, transposed=transposed
        ),
        passes=Passes(forward=sum(int(mine.sum()) for mine in own)),
    )


def _distillation(context: EncodingContext) -> FittedCoder:
    thetas, (samples, held_out), block = context.thetas, context.parts, context.recipe.distillation
    buffers = [expert.buffers for expert in context.experts]
    more = enlarged(samples, context.recipe)
    wanted = [context.logits(expert.model, more) for expert in context.experts]
    known = {"train": [logits[: len(samples)] for logits in wanted]}
    parts = {"train": samples} | ({} if held_out is samples else {"held_out": held_out})
    history: list[dict[str, Any]] = []

    def parameters(_: float, betas: Sequence[float]) -> Theta:
        code = ErasureCode(betas, labels=context.label_sets)
        student = copy.deepcopy(context.experts[0].model)
        dtype = next(student.parameters()).dtype
        student.to(torch.promote_types(dtype, torch.float32))
        set_values(student, average(thetas, betas=betas) | average_buffers(buffers, betas=betas))
        coded = sum(entry["epoch"] == 0 for entry in history)

        def log(epoch: int) -> None:
            began, found = time.perf_counter(), dict[str, Any]()
            for part, chosen in parts.items():
                if part not in known:
                    known[part] = context.expert_logits
                answers, own = [context.logits(student, chosen)], context.own(chosen)
                found[part] = measure(answers, known[part], chosen.labels, code, own=own)
            context.run.accelerator.log(numbers(found, f"coded model {coded}/"), step=epoch)
            seconds = time.perf_counter() - began
            history.append({"coded": coded, "epoch": epoch, **found, "seconds": seconds})

        log(0)
        _explained(
            "distillation",
            distill,
            student,
            more.inputs,
            code.encode([logits.double() for logits in wanted])[0],
            epochs=block.epochs,
            lr=block.lr,
            batch_size=block.batch_size,
            weight_decay=block.weight_decay,
            seed=context.recipe.samples.seed,
            accelerator=context.run.accelerator,
            progress=context.run.progress,
            on_epoch=log,
        )
        return {name: value.detach().to(dtype) for name, value in student.named_parameters()}

    trained = block.epochs * len(more) * len(context.rows)
    cost = Passes(forward=len(thetas) * len(more) + trained, backward=trained)
    return FittedCoder(parameters, passes=cost, history=history)

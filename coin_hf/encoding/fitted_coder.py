"""What each coder needs of experts and samples, so that a number and betas give the parameters."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from coin_hf.coders import (
    ALPHA_CANDIDATES,
    average,
    average_buffers,
    distill,
    fisher_average,
    gram_matrices,
    regmean,
    task_arithmetic,
)
from coin_hf.data.augmentation import enlarge
from coin_hf.data.samples import Samples
from coin_hf.encoding.inputs import compute_fishers
from coin_hf.encoding.selection import LAM_CANDIDATES, measure
from coin_hf.erasure.betas import Rows, rows_of
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_foundation
from coin_hf.experts.coded_model import load
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.fisher import resolve_estimator
from coin_hf.networks.logits import logits_of
from coin_hf.recipe.recipe import Recipe, TaskArithmeticBlock

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Passes:
    """Samples that went through one network; backward counts each vector pulled back."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        """Add up two costs."""
        return Passes(self.forward + other.forward, self.backward + other.backward)


@dataclass(eq=False)
class Task:
    """What is to be coded, on which samples, by which processes."""

    recipe: Recipe
    experts: Sequence[Expert]
    samples: Samples
    """All of them; `samples.held_out` says which part only chooses."""
    accelerator: Accelerator
    progress: bool = False
    resume: Path | None = None
    """Folder for partial Fishers."""
    fishers: list[Weights] | None = None
    """The experts' Fishers on these samples, where they are known already."""

    @cached_property
    def parts(self) -> tuple[Samples, Samples]:
        """The samples that are fitted to, and those that choose: the same, or held out."""
        return self.samples.split(self.recipe.samples.held_out)

    @cached_property
    def rows(self) -> Rows:
        """The betas of each coded model, shape (M, N)."""
        return rows_of(self.recipe.coding_weights)

    @property
    def thetas(self) -> list[Weights]:
        """The experts' parameters."""
        return [expert.parameters for expert in self.experts]

    def logits(self, model: nn.Module, samples: Samples) -> Tensor:
        """Run a network over samples, the batches shared out; shape (P, K)."""
        inputs = samples.inputs.to(next(model.parameters()).dtype)
        batch_size = self.recipe.evaluation.batch_size
        return logits_of(model, inputs, batch_size=batch_size, accelerator=self.accelerator)

    @cached_property
    def expert_logits(self) -> list[Tensor]:
        """The experts' logits on the samples that choose, each (P, K)."""
        return [self.logits(expert.model, self.parts[1]) for expert in self.experts]

    def own(self, samples: Samples) -> list[Tensor]:
        """For each expert mark the samples of its own draw, or of what is nearest to it: (P,)."""
        names, keys = list(self.recipe.draws), list(self.recipe.draws.values())
        marks = []
        for block in self.recipe.experts:
            draws = [k for k, name in enumerate(names) if name == block.label]
            draws = draws or [k for k, key in enumerate(keys) if key == block.dataset]
            marks.append(torch.isin(samples.sources, torch.tensor(draws or range(len(names)))))
        return marks


@dataclass(frozen=True, eq=False)
class Offer:
    """A coder that has seen the samples: a number and betas, and theta_c follows."""

    parameters: Callable[[float, Sequence[float]], Weights]
    key: str | None = None
    """What the recipe calls the coder's one number, if it has one."""
    candidates: tuple[float, ...] = (float("nan"),)
    """What it may be; where there are several, one is chosen on the samples."""
    passes: Passes = Passes()
    """The cost, without that of a choice."""
    fishers: list[Weights] | None = None
    """The experts' Fishers, of the coder that takes them."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """What training logged for each epoch, and the seconds that the logging took."""


def enlarged(samples: Samples, recipe: Recipe) -> Samples:
    """Add the copies that the recipe's `augment` asks for: without labels, in the samples' order.

    Args:
        samples: The samples.
        recipe: The recipe.

    Returns:
        The samples and behind them their copies, if any.
    """
    block = recipe.augment
    if block is None:
        return samples
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


def prepare(task: Task) -> Offer:
    """Compute what the recipe's coder needs.

    Args:
        task: The task.

    Returns:
        What it offers.

    Raises:
        InputError: If the experts, the foundation or a setting are not usable for this coder.
    """
    match task.recipe.coder:
        case "coin":
            return _coin(task)
        case "averaging":
            thetas = task.thetas
            return Offer(lambda _, betas: average(thetas, betas=betas))
        case "task_arithmetic":
            return _task_arithmetic(task, task.recipe.foundation)
        case "regmean":
            return _regmean(task)
        case "distillation":
            return _distillation(task)


def check(task: Task) -> None:
    """Find out, before anything is computed, whether the recipe's coder can work.

    Args:
        task: The task.

    Raises:
        InputError: If the foundation or a setting is not usable, or RegMean finds no linear map.
    """
    samples, _ = task.parts
    match task.recipe.coder:
        case "task_arithmetic":
            _foundation(task, task.recipe.foundation)
        case "regmean":
            first, mode = task.experts[0], task.recipe.regmean.mode
            what = f"expert '{first.name}'"
            _named(what, gram_matrices, first.model, samples.inputs[:1], mode=mode)


def _coin(task: Task) -> Offer:
    thetas, (samples, _), recipe = task.thetas, task.parts, task.recipe
    fishers = task.fishers
    if fishers is None:
        fishers = compute_fishers(
            recipe, task.experts, samples, task.accelerator, task.progress, task.resume
        )
    classes, block = task.experts[0].num_classes, recipe.fisher
    exact = resolve_estimator(classes, block.estimator) == "exact"
    passed = len(samples) * len(thetas)
    return Offer(
        lambda value, betas: fisher_average(thetas, fishers, betas=betas, lam=value),
        "lam",
        LAM_CANDIDATES if recipe.lam == "auto" else (recipe.lam,),
        Passes(passed, passed * (classes if exact else min(block.probes, classes))),
        fishers,
    )


def _named(what: str, compute: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Compute something; say what it was where the numeric core refuses it."""
    try:
        return compute(*args, **settings)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error


def _foundation(task: Task, block: TaskArithmeticBlock) -> Weights:
    with task.accelerator.main_process_first():
        foundation = load_expert(
            block.foundation,
            revision=block.revision,
            library=task.experts[0].library,
            device=task.accelerator.device,
            name="foundation",
        )
    check_foundation(foundation, task.experts[0])
    return foundation.parameters


def _task_arithmetic(task: Task, block: TaskArithmeticBlock) -> Offer:
    thetas, start = task.thetas, _foundation(task, block)
    return Offer(
        lambda value, betas: task_arithmetic(thetas, start, betas=betas, alpha=value),
        "alpha",
        ALPHA_CANDIDATES if block.alpha == "auto" else (block.alpha,),
    )


def _regmean(task: Task) -> Offer:
    thetas, block = task.thetas, task.recipe.regmean
    samples = enlarged(task.parts[0], task.recipe)
    own = task.own(samples)
    grams = [
        _named(
            f"expert '{expert.name}'",
            gram_matrices,
            expert.model,
            samples.inputs[mine],
            mode=block.mode,
            accelerator=task.accelerator,
            progress=task.progress,
        )
        for expert, mine in zip(task.experts, own, strict=True)
    ]
    return Offer(
        lambda _, betas: regmean(thetas, grams, betas=betas, scale=block.scale),
        passes=Passes(sum(int(mine.sum()) for mine in own)),
    )


def _distillation(task: Task) -> Offer:
    thetas, (samples, held_out), block = task.thetas, task.parts, task.recipe.distillation
    buffers = [expert.buffers for expert in task.experts]
    more = enlarged(samples, task.recipe)
    wanted = [task.logits(expert.model, more) for expert in task.experts]
    known = {"train": [logits[: len(samples)] for logits in wanted]}
    parts = {"train": samples} | ({} if held_out is samples else {"held_out": held_out})
    history: list[dict[str, Any]] = []

    def parameters(_: float, betas: Sequence[float]) -> Weights:
        code, student = ErasureCode(betas), copy.deepcopy(task.experts[0].model)
        dtype = next(student.parameters()).dtype
        student.to(torch.promote_types(dtype, torch.float32))
        load(student, average(thetas, betas=betas), average_buffers(buffers, betas=betas))
        coded = sum(entry["epoch"] == 0 for entry in history)

        def log(epoch: int) -> None:
            began, found = time.perf_counter(), dict[str, Any]()
            for part, chosen in parts.items():
                if part not in known:
                    known[part] = task.expert_logits
                answers, own = [task.logits(student, chosen)], task.own(chosen)
                found[part] = measure(answers, known[part], chosen, code, own=own)
            seconds = time.perf_counter() - began
            history.append({"coded": coded, "epoch": epoch, **found, "seconds": seconds})

        log(0)
        _named(
            "distillation",
            distill,
            student,
            more.inputs,
            code.encode([logits.double() for logits in wanted])[0],
            epochs=block.epochs,
            lr=block.lr,
            batch_size=block.batch_size,
            weight_decay=block.weight_decay,
            seed=task.recipe.samples.seed,
            accelerator=task.accelerator,
            progress=task.progress,
            on_epoch=log,
        )
        return {name: value.detach().to(dtype) for name, value in student.named_parameters()}

    trained = block.epochs * len(more) * len(task.rows)
    cost = Passes(len(thetas) * len(more) + trained, trained)
    return Offer(parameters, passes=cost, history=history)

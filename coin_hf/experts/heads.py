"""Bring experts whose classes are the same, in another order, into one order of rows.

Row k of every network's logits must be one class, or unlike classes are averaged. The head of a
network is the tensors whose rows are its classes; permuting them permutes its logits.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.experts.merged_config import timm_config
from coin_hf.experts.probes import probe_batch
from coin_hf.networks.inputs import fit_to
from coin_hf.networks.logits import call
from coin_hf.records.coin import ClassOrder

SAME = 1e-9
"""Largest difference of logits, relative to the largest one, of a permuted network in float64."""


def folded(name: str) -> str:
    """Fold a class name: without case, spaces, hyphens and underscores.

    Args:
        name: The name.

    Returns:
        Names that fold alike are taken for one class where no exact name matches.
    """
    return re.sub(r"[\s_-]+", "", name).casefold()


def in_one_order(experts: Sequence[Expert]) -> list[Expert]:
    """Permute the rows of experts that number the first one's classes in another order.

    Args:
        experts: At least one expert; those that are permuted are changed in place.

    Returns:
        The experts, each with row k for the first one's class k where it has the same classes; the
        order of its own is in `class_order`.

    Raises:
        InputError: If a head cannot be found.
    """
    first, *others = experts
    return [first, *(_like(first, other) for other in others)]


def reorder(expert: Expert, order: ClassOrder) -> Expert:
    """Permute the rows of a network's head.

    Args:
        expert: The expert, its rows in its own order; its network is changed in place.
        order: The row of each of its classes, and its head.

    Returns:
        The expert, whose network, names and config.json are in the new order.

    Raises:
        InputError: If it has no such tensors of K rows.
    """
    state = expert.model.state_dict()
    wrong = [n for n in order.tensors if n not in state or len(state[n]) != len(order.rows)]
    if wrong or len(order.rows) != expert.num_classes:
        raise InputError(
            f"expert '{expert.name}' has no head of {len(order.rows)} classes in "
            f"{', '.join(wrong or order.tensors)}, as recorded: give the expert that was coded"
        )
    _permute(expert.model, order)
    config, names = expert.config, expert.label_names
    if names is not None:
        names = tuple(names[own] for own in order.own)
        if expert.library == "timm":
            config = timm_config(config, expert.num_classes, names)
        elif expert.library == "transformers":
            settings: Any = expert.model.config
            settings.id2label = dict(enumerate(names))
            settings.label2id = {name: row for row, name in enumerate(names)}
    return replace(expert, config=config, label_names=names, class_order=order)


def columns(logits: Tensor, order: ClassOrder | None, given: Literal["own", "rows"]) -> Tensor:
    """Convert logits between the order of an expert's own classes and that of the rows.

    Args:
        logits: Shape (B, K), in the given order.
        order: The expert's; None where both are the same.
        given: The order of the logits.

    Returns:
        Shape (B, K), in the other order.
    """
    if order is None:
        return logits
    return logits[:, order.own if given == "own" else order.rows]


def head_tensors(expert: Expert, rows: Sequence[int]) -> list[str]:
    """Find the tensors of a network whose rows are its classes, and verify that they are.

    Adding to row k of such a tensor changes logit k alone. All of them permuted must permute the
    logits, in float64 on images of noise or on a few texts.

    Args:
        expert: The expert.
        rows: A permutation of its K classes, to verify with.

    Returns:
        Names of parameters and buffers, in the network's order.

    Raises:
        InputError: If they are not found.
    """
    model: Any = copy.deepcopy(expert.model).cpu().double().eval()
    inputs = fit_to(probe_batch(expert.preprocessing), model)
    before = _logits(model, inputs)
    found = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point()
        and value.dim()
        and len(value) == expert.num_classes
        and _moves_its_own_logit(model, value, inputs, before)
    ]
    order = ClassOrder(rows=list(rows), tensors=found)
    _permute(model, order)
    after = _logits(model, inputs)
    if not found or (after - before[:, order.own]).abs().max() > SAME * before.abs().max():
        raise InputError(
            f"expert '{expert.name}' numbers its classes in another order than the first expert, "
            "and its head cannot be found to permute: no set of tensors permutes its logits; "
            "permute it yourself, or fine-tune it with the same order"
        )
    return found


def _like(first: Expert, other: Expert) -> Expert:
    """Permute one expert, if its classes are the first one's in another order."""
    names, own = first.label_names, other.label_names
    if names is None or own is None or len(names) != len(own):
        return other
    for fold in (str, folded):
        ours, theirs = [fold(name) for name in names], [fold(name) for name in own]
        if sorted(ours) == sorted(theirs):
            break
    else:
        return other
    if ours == theirs or len(set(ours)) < len(ours):  # two classes of one name have no one order
        return other
    rows = [ours.index(name) for name in theirs]
    warnings.warn(
        f"expert '{other.name}' numbers its classes in another order than '{first.name}': the rows "
        "of its head are permuted to match, and its answers are given in its own order",
        stacklevel=4,
    )
    return reorder(other, ClassOrder(rows=rows, tensors=head_tensors(other, rows)))


@torch.no_grad()
def _permute(model: nn.Module, order: ClassOrder) -> None:
    state = model.state_dict()
    for name in order.tensors:
        state[name].copy_(state[name][order.own])


@torch.no_grad()
def _logits(model: nn.Module, inputs: Any) -> Tensor:
    return call(model, inputs)


@torch.no_grad()
def _moves_its_own_logit(model: nn.Module, value: Tensor, inputs: Any, before: Tensor) -> bool:
    """Say whether a change of the first row changes the first logit, and no other."""
    kept = value[0].clone()
    value[0] += 1 + value[0].abs()
    changed = (call(model, inputs) - before).abs().amax(0) > SAME * before.abs().max()
    value[0] = kept
    return bool(changed[0]) and not bool(changed[1:].any())

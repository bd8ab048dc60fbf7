"""Find the head of a network, and place its rows among those of all experts' classes.

The head is the tensors whose rows are the network's classes: permuting them permutes its logits.
Rows of classes that a network does not know are zero, and so are its logits there. They are
parameters like all others: d f_k / d W_k is the features h, also where W_k = 0, so that their
Fisher is E[h^2].
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.experts.merged_config import placed_names, timm_config
from coin_hf.experts.probes import probe_batch
from coin_hf.networks.class_rows import spread
from coin_hf.networks.inputs import fit_to
from coin_hf.networks.logits import call
from coin_hf.records.coin import ClassOrder

SAME = 1e-9
"""Largest difference of logits, relative to the largest one, of a changed network in float64."""
COUNTS = ("out_features", "out_channels", "num_classes", "num_labels")
"""Attributes of modules that count the rows of a head."""


def place(expert: Expert, order: ClassOrder, names: Sequence[str] | None = None) -> Expert:
    """Place the rows of a network's head, those of other classes zero.

    Args:
        expert: The expert, its rows in its own order; its network is changed in place.
        order: The row of each of its classes, and its head.
        names: The names of all K rows; by default its own, if it has as many classes.

    Returns:
        The expert, whose network, names and config.json have K classes.

    Raises:
        InputError: If it has no such tensors.
    """
    state = expert.model.state_dict()
    wrong = [n for n in order.tensors if n not in state or len(state[n]) != len(order.rows)]
    if wrong or len(order.rows) != expert.num_classes:
        raise InputError(
            f"expert '{expert.name}' has no head of {len(order.rows)} classes in "
            f"{', '.join(wrong or order.tensors)}, as recorded: give the expert that was coded"
        )
    _place(expert.model, order)
    placed = placed_names(expert.label_names, order) if names is None else tuple(names)
    config = expert.config
    if placed is not None or order.count > len(order.rows):
        if expert.library == "timm":
            config = timm_config(config, order.count, placed)
        elif expert.library == "transformers":
            settings: Any = expert.model.config
            known = placed or [f"LABEL_{row}" for row in range(order.count)]
            settings.id2label = dict(enumerate(known))
            settings.label2id = {name: row for row, name in enumerate(known)}
    return replace(
        expert,
        config=config,
        label_names=placed,
        labels=expert.label_names,
        class_order=order,
        num_classes=order.count,
    )


def columns(logits: Tensor, order: ClassOrder | None, given: Literal["own", "rows"]) -> Tensor:
    """Convert logits between an expert's own classes and the rows of all.

    Args:
        logits: Shape (B, K_i) in its own order, or (B, K) by row.
        order: The expert's; None where both are the same.
        given: What the logits are.

    Returns:
        The other: (B, K), zero where it has no class, or (B, K_i).

    Raises:
        ValueError: If the number of logits is another.
    """
    if order is None:
        return logits
    expected = len(order.rows) if given == "own" else order.count
    if logits.shape[1] != expected:
        raise ValueError(f"expected {expected} logits for each input, got {logits.shape[1]}")
    if given == "own":
        return spread(logits, order.rows, order.count, axis=1)
    return logits[:, order.rows]


def head_tensors(expert: Expert, rows: Sequence[int], count: int | None = None) -> list[str]:
    """Find the tensors of a network whose rows are its classes, and verify that they are.

    Adding to row k of such a tensor changes logit k alone. All of them placed must place the
    logits, in float64 on images of noise or on a few texts.

    Args:
        expert: The expert.
        rows: The row of each of its classes, to verify with.
        count: K, if there are more rows than it has classes.

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
    order = ClassOrder(rows=list(rows), tensors=found, width=count)
    if found:
        _place(model, order)
    if not found or not _places(order, before, _logits(model, inputs)):
        raise InputError(
            f"the head of expert '{expert.name}' cannot be found, to bring its classes into the "
            "order of the others': no set of tensors has a row for each logit; fine-tune it with "
            "the same classes in one order, or set `classes: position` if it has as many"
        )
    return found


def _places(order: ClassOrder, before: Tensor, after: Tensor) -> bool:
    """Say whether logits are where an order places them, and zero elsewhere."""
    wanted = spread(before, order.rows, order.count, axis=1)
    same = after.shape == wanted.shape
    return same and bool((after - wanted).abs().max() <= SAME * before.abs().max())


@torch.no_grad()
def _place(model: nn.Module, order: ClassOrder) -> None:
    """Place the rows of a head in place; where there are more rows, in new tensors."""
    state = model.state_dict()
    for name in order.tensors:
        placed = spread(state[name], order.rows, order.count)
        if placed.shape == state[name].shape:
            state[name].copy_(placed)
            continue
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, own)
        if isinstance(old, nn.Parameter):
            placed = nn.Parameter(placed, requires_grad=old.requires_grad)
        setattr(module, own, placed)
        for holder in (module, *_above(model, path)):
            for count in COUNTS:
                if vars(holder).get(count) == len(order.rows):
                    setattr(holder, count, order.count)


def _above(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules that hold a module, up to the network itself."""
    parts = path.split(".")[:-1] if path else []
    return [model, *(model.get_submodule(".".join(parts[:n])) for n in range(1, len(parts) + 1))]


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

"""Check that experts can be coded together: same architecture, parameters, preprocessing."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.experts.probes import probe_singles
from coin_hf.networks.inputs import fit_to
from coin_hf.networks.logits import call

SAME = 1e-7
"""Largest difference of logits, relative to the largest one, of two networks that are one function
in float64: eager attention takes its softmax in float32; another epsilon of a norm shows more."""
SHOWN = 10
"""Names listed if the architectures differ; if they agree, all names are listed."""


def check_alignment(experts: Sequence[Expert]) -> None:
    """Compare every expert with the first one.

    Args:
        experts: At least two experts.

    Raises:
        InputError: If architecture, number of classes, preprocessing, or a parameter's or
            buffer's name, shape or dtype differs; all differences are listed at once. Settings in
            other words are no difference where networks and inputs are equal, as built.
    """
    first, *others = experts
    differences = [line for other in others for line in _differences(first, other)]
    if differences:
        raise InputError(
            "the experts cannot be coded together, they differ in:\n  - "
            + "\n  - ".join(differences)
            + "\nuse experts fine-tuned from one foundation, with one head size and preprocessing"
        )


def check_foundation(foundation: Expert, expert: Expert) -> None:
    """Check that an expert's parameters match a foundation's in name and shape.

    Args:
        foundation: The network it was fine-tuned from.
        expert: The expert.

    Raises:
        InputError: If a parameter's name or shape differs; all differences are listed at once.
    """
    ours, theirs = foundation.parameters, expert.parameters
    faults = [
        f"only {who} has {_list(names, SHOWN)}"
        for who, names in (
            ("the foundation", [name for name in ours if name not in theirs]),
            (f"'{expert.name}'", [name for name in theirs if name not in ours]),
        )
        if names
    ]
    faults += [
        f"'{name}' has shape {tuple(value.shape)} in the foundation, {tuple(theirs[name].shape)} "
        f"in '{expert.name}'"
        for name, value in ours.items()
        if name in theirs and value.shape != theirs[name].shape
    ]
    if faults:
        raise InputError(
            f"the foundation {foundation.repo} does not match the experts: {'; '.join(faults)}; "
            "give the network they were fine-tuned from, with the head they started with"
        )


def differing_statistics(experts: Sequence[Expert]) -> list[str]:
    """List the floating-point buffers (BatchNorm statistics) that differ among the experts.

    Args:
        experts: Aligned experts.

    Returns:
        Buffer names, in the network's order.
    """
    first, *others = experts
    buffers = [other.buffers for other in others]
    return [
        name
        for name, value in first.buffers.items()
        if value.is_floating_point() and any(not torch.equal(value, b[name]) for b in buffers)
    ]


def _differences(a: Expert, b: Expert) -> Iterable[str]:
    if a.library != b.library:
        yield f"library: '{a.name}' is {a.library}, '{b.name}' is {b.library}"
        return
    if a.task != b.task:
        yield f"task: '{a.name}' is for {a.task}, '{b.name}' for {b.task}"
        return
    if a.architecture != b.architecture and not _same_function(a, b):
        yield from _compare("architecture", a, a.architecture, b, b.architecture)
    if a.num_classes != b.num_classes:
        yield f"classes: '{a.name}' has {a.num_classes}, '{b.name}' has {b.num_classes}"
    if _reordered(a.label_names, b.label_names):
        yield (
            f"class names: '{a.name}' and '{b.name}' have the same classes in another order "
            f"({_list(a.label_names or (), 3)} ...; {_list(b.label_names or (), 3)} ...), of which "
            "several have one name: tell them apart in `label_names` or `id2label`"
        )
    ours, theirs = a.preprocessing, b.preprocessing
    if ours.settings != theirs.settings and not _same_input(a, b):
        yield from _compare("preprocessing", a, ours.settings, b, theirs.settings)
    state_a, state_b = a.model.state_dict(), b.model.state_dict()
    shown = SHOWN if a.architecture != b.architecture else None
    for one, other, held, lacked in ((a, b, state_a, state_b), (b, a, state_b, state_a)):
        names = [name for name in held if name not in lacked]
        if names:
            yield f"parameters: only '{one.name}', not '{other.name}', has {_list(names, shown)}"
    faults = [
        f"'{name}' is {_form(value)} in '{a.name}', {_form(state_b[name])} in '{b.name}'"
        for name, value in state_a.items()
        if name in state_b and _form(value) != _form(state_b[name])
    ]
    if faults:
        yield f"parameters: {_list(faults, shown, quote='')}"


def _reordered(a: Sequence[str] | None, b: Sequence[str] | None) -> bool:
    return a is not None and b is not None and a != b and sorted(a) == sorted(b)


def _same_input(a: Expert, b: Expert) -> bool:
    """Say whether two preprocessings of images give equal tensors, whatever their settings say.

    No few texts show that two vocabularies agree: tokenizers agree by their settings alone.
    """
    try:
        ours, theirs = probe_singles(a.preprocessing), probe_singles(b.preprocessing)
    except InputError:
        return False
    return all(
        isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
        for x, y in zip(ours, theirs, strict=True)
    )


@torch.no_grad()
def _same_function(a: Expert, b: Expert) -> bool:
    """Say whether equal weights give equal logits, whatever the settings say.

    In float64, where two ways of computing one function (of attention) agree to many digits.
    """
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    if {n: _form(v) for n, v in ours.items()} != {n: _form(v) for n, v in theirs.items()}:
        return False
    try:
        one, other = (copy.deepcopy(expert.model).cpu().double().eval() for expert in (a, b))
        other.load_state_dict(one.state_dict())
        inputs = [fit_to(x, one) for x in probe_singles(a.preprocessing)]
        pairs = [(call(one, x), call(other, x)) for x in inputs]
        return all((x - y).abs().max() <= SAME * x.abs().max() for x, y in pairs)
    except (InputError, RuntimeError, ValueError):
        return False


def _compare(
    what: str, a: Expert, of_a: dict[str, Any], b: Expert, of_b: dict[str, Any]
) -> Iterable[str]:
    for key in sorted(of_a.keys() | of_b.keys()):
        left, right = of_a.get(key), of_b.get(key)
        if left != right:
            yield f"{what}, {key}: '{a.name}' has {left}, '{b.name}' has {right}"


def _form(value: torch.Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _list(items: Sequence[str], shown: int | None, quote: str = "'") -> str:
    left = f" and {len(items) - shown} more" if shown and len(items) > shown else ""
    return ", ".join(f"{quote}{item}{quote}" for item in items[:shown]) + left

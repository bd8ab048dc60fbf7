"""The inputs of a network: a tensor, or a mapping of keyword arguments to tensors (text)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""Tensors of shape (P, ...): images, or the mapping that a tokenizer returns."""


def count(inputs: Inputs) -> int:
    """Return P, the number of inputs.

    Args:
        inputs: Shape (P, ...).

    Returns:
        The length of the first axis.
    """
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def take(inputs: Inputs, index: Any) -> Any:
    """Select inputs.

    Args:
        inputs: Shape (P, ...).
        index: A slice, a list of positions, or a tensor of positions or of booleans.

    Returns:
        The selected inputs, a tensor or a dict of tensors like `inputs`.
    """
    if isinstance(inputs, Mapping):
        return {name: value[index] for name, value in inputs.items()}
    return inputs[index]


def batches(inputs: Inputs, size: int) -> Iterator[Any]:
    """Split inputs into batches.

    Args:
        inputs: Shape (P, ...).
        size: Inputs per batch; the last may have fewer.

    Yields:
        The batches, in order.
    """
    for start in range(0, count(inputs), size):
        yield take(inputs, slice(start, start + size))


def stack(single: Sequence[Any]) -> Any:
    """Stack single inputs into a batch.

    Args:
        single: At least one, each of shape (...), a tensor or a mapping of tensors.

    Returns:
        Shape (B, ...).
    """
    if isinstance(single[0], Mapping):
        return {name: torch.stack([each[name] for each in single]) for name in single[0]}
    return torch.stack(list(single))


def concatenate(parts: Sequence[Any]) -> Any:
    """Concatenate inputs along their first axis; all parts must have the same keys.

    Args:
        parts: At least one.

    Returns:
        All inputs, in order.
    """
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(list(parts))


def repeat_first(inputs: Inputs, times: int) -> Any:
    """Repeat the first input.

    Args:
        inputs: Shape (P, ...).
        times: Number of copies.

    Returns:
        Shape (times, ...).
    """
    if isinstance(inputs, Mapping):
        return {name: repeat_first(value, times) for name, value in inputs.items()}
    return torch.cat([inputs[:1]] * times)


def to_device(inputs: Inputs, device: torch.device | str) -> Any:
    """Move inputs to a device, keeping their dtypes.

    Args:
        inputs: Shape (P, ...).
        device: The target device.

    Returns:
        The inputs on that device.
    """
    if isinstance(inputs, Mapping):
        return {name: to_device(value, device) for name, value in inputs.items()}
    return inputs.to(device, non_blocking=True)


def cast(inputs: Inputs, dtype: torch.dtype) -> Any:
    """Cast floating-point inputs; leave integers (tokens) and booleans (masks) unchanged.

    Args:
        inputs: Shape (P, ...).
        dtype: A floating-point dtype.

    Returns:
        The inputs in that dtype.
    """
    if isinstance(inputs, Mapping):
        return {name: cast(value, dtype) for name, value in inputs.items()}
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def fit_to(inputs: Inputs, model: nn.Module) -> Any:
    """Move inputs to a network's device and cast floating-point ones to its dtype.

    Args:
        inputs: Shape (P, ...).
        model: The network.

    Returns:
        The inputs, ready for `coin_hf.networks.logits.call`.
    """
    first = next(model.parameters())
    return cast(to_device(inputs, first.device), first.dtype)

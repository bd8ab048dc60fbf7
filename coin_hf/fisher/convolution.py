"""Convolve by a matrix product where maps are tiny; list which positions each tap connects."""

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.vector_jacobian import linear_map, with_gradient
from coin_hf.networks.patches import as_tuple, patches

FEW = 16
"""Largest product of input and output positions at which the dense matrix is faster than a
convolution, which multiplies the padding too: 9 products per useful one for a 3x3 kernel on one
position."""


def convolve(
    function: Callable[..., Tensor],
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *,
    once: bool = False,
) -> Tensor:
    """Convolve, by a matrix product where that is faster, with channels last in memory.

    Args:
        function: torch.conv1d, conv2d or conv3d.
        inputs: Shape (B, C, *space).
        weight: Shape (O, C / groups, *kernel).
        bias: Shape (O,) or None.
        stride: Stride of the convolution.
        padding: Padding of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        once: Whether the result and its gradient are needed only once: no dense matrix is built.

    Returns:
        Shape (B, O, *space').
    """
    n = weight.dim() - 2
    if groups == 1 and not weight.requires_grad and inputs.device.type == "cpu":
        if all(extent == 1 for extent in weight.shape[2:]) and padding in (0, (0,) * n, "valid"):
            rows = _every(inputs.movedim(1, -1), as_tuple(stride, n))
            return linear_map(rows, weight.flatten(1), bias).movedim(-1, 1)
        if not once:
            output = _convolve_few(inputs, weight, bias, stride, padding, dilation)
            if output is not None:
                return output
            order = {2: torch.channels_last, 3: torch.channels_last_3d}.get(n)
            if order is not None:
                weight = weight.contiguous(memory_format=order)
    return function(inputs, weight, bias, stride, padding, dilation, groups)


def _every(inputs: Tensor, steps: Sequence[int]) -> Tensor:
    """Take strided positions of (B, *space, C)."""
    if all(step == 1 for step in steps):
        return inputs
    chosen = (slice(None), *(slice(None, None, step) for step in steps))
    if not inputs.requires_grad:
        return inputs[chosen]
    shape, of_each = inputs.shape, (slice(None), *chosen)

    def pull(gradient: Tensor) -> Tensor:  # torch's own makes a full map per axis
        whole = gradient.new_zeros(len(gradient), *shape)
        whole[of_each] = gradient
        return whole

    order = torch.contiguous_format
    return with_gradient(inputs, lambda x: x[chosen].clone(memory_format=order), pull)


def _convolve_few(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor | None:
    """Convolve maps of very few positions by one dense matrix product; None for larger ones."""
    space, kernel = tuple(inputs.shape[2:]), tuple(weight.shape[2:])
    positions = prod(space)
    if positions > FEW:
        return None
    extents, places = taps(space, kernel, stride, padding, dilation)
    if positions * len(places) > FEW:
        return None
    seen = {tap for used in places for _, tap in used}
    kernels = {tap: weight.flatten(2)[..., tap].contiguous() for tap in seen}  # (O, C) each
    matrix = weight.new_zeros(len(places), len(weight), positions, weight.shape[1])  # (T, O, S, C)
    for t, used in enumerate(places):
        for s, tap in used:
            matrix[t, :, s] = kernels[tap]
    columns = inputs.flatten(2).transpose(1, 2).flatten(1)  # (B, S * C)
    rows = linear_map(columns, matrix.view(-1, columns.shape[1]))  # (B, T * O)
    output = rows.view(len(inputs), len(places), -1).transpose(1, 2).unflatten(2, extents)
    return output if bias is None else output + bias.view(-1, *(1,) * len(kernel))


def taps(
    space: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> tuple[tuple[int, ...], list[list[tuple[int, int]]]]:
    """List the input positions and taps of each output position of a convolution.

    Args:
        space: Extents of the input, n numbers.
        kernel: Extents of the kernel, n numbers.
        stride: Stride of the convolution, one number or n.
        padding: Padding of the convolution, one number or n, or "same" or "valid".
        dilation: Dilation of the convolution, one number or n.

    Returns:
        Extents of the output, and for each of its positions the pairs (input position, tap) that
        contribute to it, padding excluded.
    """
    return _taps(*_settings(space, kernel, stride, padding, dilation))


def by_tap(
    space: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> list[tuple[list[int], list[int]]]:
    """List the same by tap: its output positions, ascending, and the input position for each."""
    return _by_tap(*_settings(space, kernel, stride, padding, dilation))


def _settings(
    space: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...]:
    """Return the arguments in one hashable form, for the caches."""
    n = len(kernel)
    pads = padding if isinstance(padding, str) else as_tuple(padding, n)
    return tuple(space), tuple(kernel), as_tuple(stride, n), pads, as_tuple(dilation, n)


@cache
def _by_tap(*settings: Any) -> list[tuple[list[int], list[int]]]:
    meetings: list[tuple[list[int], list[int]]] = [([], []) for _ in range(prod(settings[1]))]
    for t, used in enumerate(_taps(*settings)[1]):
        for s, tap in used:
            meetings[tap][0].append(t)
            meetings[tap][1].append(s)
    return meetings


@cache
def _taps(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Any,
    dilation: tuple[int, ...],
) -> tuple[tuple[int, ...], list[list[tuple[int, int]]]]:
    numbers = torch.arange(1.0, prod(space) + 1).view(1, 1, *space)  # 0 is padding
    seen = patches(numbers, kernel, stride, padding, dilation)[0].int().tolist()  # (T, taps)
    weight = torch.zeros(1, 1, *kernel)
    with torch.no_grad():
        function = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
        extents = function(numbers, weight, None, stride, padding, dilation).shape[2:]
    return tuple(extents), [[(s - 1, d) for d, s in enumerate(row) if s > 0] for row in seen]

"""Patches of a convolution's input (im2col), for any number of spatial axes."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def patches(
    inputs: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """Gather the patch of each output position.

    Args:
        inputs: Shape (B, C, *space), n spatial axes.
        kernel: Extents of the kernel, n numbers.
        stride: Stride of the convolution, one number or n.
        padding: Padding of the convolution, one number or n, or "same" or "valid".
        dilation: Dilation of the convolution, one number or n.

    Returns:
        Shape (B, T, C * taps): T output positions, channels before taps as in a weight.
    """
    n = len(kernel)
    if all(extent == 1 for extent in kernel):
        steps = (slice(None, None, step) for step in as_tuple(stride, n))
        padded = F.pad(inputs, _pads(padding, kernel, as_tuple(dilation, n)))
        where: tuple[Any, ...] = (slice(None), slice(None), *steps)
        return padded[where].flatten(2).transpose(1, 2)
    views = windows(inputs, kernel, stride, padding, dilation)
    return views.flatten(2 + n).flatten(1, 1 + n).transpose(1, 2)


def windows(
    inputs: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """View the window of each output position, without a copy of it.

    Args:
        inputs: Shape (B, C, *space), n spatial axes.
        kernel: Extents of the kernel, n numbers.
        stride: Stride of the convolution, one number or n.
        padding: Padding of the convolution, one number or n, or "same" or "valid".
        dilation: Dilation of the convolution, one number or n.

    Returns:
        Shape (B, C, *kernel, *positions), overlapping views of the padded inputs.
    """
    n = len(kernel)
    strides, dilations = as_tuple(stride, n), as_tuple(dilation, n)
    inputs = F.pad(inputs, _pads(padding, kernel, dilations))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    space = [
        (extent - span) // step + 1
        for extent, span, step in zip(inputs.shape[2:], spans, strides, strict=True)
    ]
    offsets = inputs.stride()
    return inputs.as_strided(
        (*inputs.shape[:2], *kernel, *space),
        (
            *offsets[:2],
            *(o * d for o, d in zip(offsets[2:], dilations, strict=True)),
            *(o * s for o, s in zip(offsets[2:], strides, strict=True)),
        ),
        inputs.storage_offset(),
    )


def as_tuple(value: Any, n: int) -> tuple[int, ...]:
    """Expand a convolution setting to one number per axis.

    Args:
        value: One number for all axes, or one per axis.
        n: Number of axes.

    Returns:
        n numbers.
    """
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def _pads(padding: Any, kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return the padding of each axis, last axis first, as F.pad expects it."""
    if padding == "valid":
        sides = [(0, 0) for _ in kernel]
    elif padding == "same":  # an odd one goes to the end, as in torch
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(pad, pad) for pad in as_tuple(padding, len(kernel))]
    return [pad for side in reversed(sides) for pad in side]

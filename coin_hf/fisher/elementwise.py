"""Squared per-sample gradients of parameters that are used elementwise: scales and shifts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

PULLED = 2**24  # elements of pulled-back gradients alive at once


@dataclass(frozen=True)
class Elementwise:
    """Squares for a parameter w that is broadcast along an output y = w * factor + ...

    Its gradient is the sum of g * factor over the positions that share an entry of w.

    Attributes:
        samples: P.
        factor: Returns the factor, of the output's shape (P * R, ...); None for ones.
        trailing: Number of output axes after those that w is aligned with.
    """

    samples: int
    factor: Callable[[], Tensor] | None = None
    trailing: int = 0

    def __call__(self, total: Tensor, gradient: Tensor) -> None:
        """Add the squares to a running sum of the parameter's shape; g is (M, P * R, ...)."""
        self.add(total, None, gradient)

    def add(self, total: Tensor, bias: Tensor | None, gradient: Tensor) -> None:
        """Add also the squares of a bias of w's shape, y = w * factor + b, reading g only once."""
        gradient, factor, kept, summed = self._aligned(total.shape, gradient)
        if not summed:
            squared = gradient.square().sum(0)
            if bias is not None:
                bias += squared.sum(0).view(bias.shape)
            if factor is not None:
                squared *= factor.square()
            total += squared.sum(0).view(total.shape)
            return
        # One cotangent at a time, through one buffer: the product stays in the cache.
        buffer = torch.empty_like(gradient[0])
        for g in gradient:
            if bias is not None:
                bias += _summed(g, kept, summed).square_().sum(0).view(bias.shape)
            values = g if factor is None else torch.mul(g, factor, out=buffer)
            total += _summed(values, kept, summed).square_().sum(0).view(total.shape)

    def of_each(self, shape: Sequence[int], gradient: Tensor) -> Tensor:
        """Return the gradient of each sample and cotangent, shape (M, P, *shape)."""
        gradient, factor, kept, summed = self._aligned(shape, gradient)
        values = [g if factor is None else g * factor for g in gradient]
        rows = torch.stack([_summed(value, kept, summed) for value in values])
        return rows.view(*rows.shape[:2], *shape)

    def _aligned(
        self, shape: Sequence[int], gradient: Tensor
    ) -> tuple[Tensor, Tensor | None, list[int], list[int]]:
        """Return g as (M, P, R, *sample), factor as (P, R, *sample), axes kept and axes summed."""
        rows = (self.samples, gradient.shape[1] // self.samples)
        factor = None
        if self.factor is not None:
            factor = self.factor().to(gradient.dtype).unflatten(0, rows)
        gradient = gradient.unflatten(1, rows)
        sample = gradient.shape[2:]
        if len(shape) == len(sample):  # (1, ...): w has no sample axis either
            shape = shape[1:]
        aligned = (1,) * (len(sample) - len(shape) - self.trailing) + tuple(shape)
        aligned += (1,) * self.trailing
        kept = [axis for axis, extent in enumerate(aligned) if extent == sample[axis] != 1]
        summed = [axis for axis, extent in enumerate(sample) if extent != 1 and axis not in kept]
        return gradient, factor, kept, summed


def _summed(values: Tensor, kept: Sequence[int], summed: Sequence[int]) -> Tensor:
    """Sum (P, *sample) over some axes of a sample: (P, entries)."""
    if not summed:
        return values.reshape(len(values), -1)
    if not kept or any(values.stride(axis + 1) == 1 for axis in kept):
        return values.sum([axis + 1 for axis in summed]).reshape(len(values), -1)
    # Over the axes innermost in memory, a product with ones is several times faster than `sum`.
    extents = values.shape[1:]
    single = [axis for axis, extent in enumerate(extents) if extent == 1]
    order = [0, *(axis + 1 for axis in (*kept, *single, *summed))]
    columns = values.permute(order).reshape(-1, prod(extents[axis] for axis in summed))
    return torch.mv(columns, columns.new_ones(columns.shape[1])).view(len(values), -1)


def pull_back(
    square: Elementwise, derived: Tensor, parameter: Tensor, total: Tensor, gradient: Tensor
) -> None:
    """Add the squares of a parameter behind a derived tensor.

    Args:
        square: How the derived tensor is used.
        derived: The tensor, with its autograd graph.
        parameter: One of the leaves of that graph.
        total: Running sum of the parameter's shape, changed in place.
        gradient: Gradient of the output, shape (M, P * R, ...).
    """
    rows = square.of_each(derived.shape, gradient).flatten(0, 1).to(derived.dtype)

    def one(row: Tensor) -> Tensor:
        return torch.autograd.grad(derived, parameter, row, retain_graph=True)[0]

    for part in rows.split(max(1, PULLED // parameter.numel())):
        total += torch.func.vmap(one)(part).to(total.dtype).square_().sum(0)

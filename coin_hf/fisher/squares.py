"""Sums of squared per-sample gradients, without forming the gradients.

A weight that multiplies an input a[l, t] (T positions a sample) receives from cotangent m the
per-sample gradient J[m, l] = sum_t g[m, l, t] a[l, t]^T. The Fisher needs the sum over m and l of
its *square*, taken after the sum over t. Three ways, the cheapest by operation count is taken:

    T = 1       sum_{m,l} g_o^2 a_i^2                 = (sum_m g^2)^T (a^2), M drops out
    small T     sum_m (sum_t g_t a_t)^2               = sum_{t,t'} (sum_m g_t g_t') (a_t a_t')
    else        J itself, one sample after the other, in a buffer that stays in the cache

Shapes: M cotangents, P samples, T positions, O outputs, I inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

CACHE = 160 * 1024  # elements of J alive at once in the direct way: about an L2 cache in float32
PULLED = 2**24  # elements of pulled-back gradients alive at once
SQUARE = 6  # cost of squaring and adding one element of J, in multiply-adds of a matrix product


def add_products(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """Add sum_{m,l} (sum_t g[m,l,t,o] a[l,t,i])^2 to total[o,i].

    Args:
        total: Shape (O, I), changed in place.
        gradient: g, shape (M, P, T, O).
        inputs: a, shape (P, T, I).
    """
    reached = _reached(gradient)
    if reached is not None:
        gradient, inputs = gradient[:, :, reached], inputs[:, reached]
    positions = inputs.shape[1]
    if positions == 0:
        return
    if positions == 1:
        squared = gradient[:, :, 0].square().sum(0)  # (P, O)
        total.addmm_(squared.t(), inputs[:, 0].square())
    elif gram_pays(len(gradient), positions):
        first, second, weight = pairs(positions, inputs)
        grams = gradient_pairs(gradient)  # (pairs, P, O)
        products = inputs.transpose(0, 1)[first] * inputs.transpose(0, 1)[second]
        products *= weight[:, None, None]  # (pairs, P, I)
        total.addmm_(grams.flatten(0, 1).t(), products.flatten(0, 1))
    else:
        _add_direct(total, gradient.transpose(2, 3), inputs)


def add_grouped_products(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """Add sum_{m,l} (sum_t g[m,l,q,t,o] a[l,q,t,i])^2 to total[q,o,i] for each group q.

    Args:
        total: Shape (Q, O, I), changed in place.
        gradient: g, shape (M, P, Q, T, O).
        inputs: a, shape (P, Q, T, I).
    """
    cotangents, samples, groups, _, outputs = gradient.shape
    size = groups * cotangents * outputs * inputs.shape[-1]
    step = max(1, CACHE // size)
    for start in range(0, samples, step):
        part = slice(start, start + step)
        g = gradient[:, part].permute(1, 2, 0, 4, 3)  # (p, Q, M, O, T)
        jacobian = g.flatten(2, 3) @ inputs[part]  # (p, Q, M * O, I)
        total += jacobian.square_().unflatten(2, (cotangents, outputs)).sum((0, 2))


@dataclass(frozen=True)
class Elementwise:
    """Squares for a parameter w that is broadcast along an output y = w * factor + ...

    Its gradient is the sum of g * factor over the positions that share an entry of w.

    Attributes:
        samples: P.
        factor: Gives the factor, shape (P * R, ...) of the output, or None for ones.
        trailing: Axes of the output behind those that w is aligned with.
    """

    samples: int
    factor: Callable[[], Tensor] | None = None
    trailing: int = 0

    def __call__(self, total: Tensor, gradient: Tensor) -> None:
        """Add the squares to a running sum of the parameter's shape; g is (M, P * R, ...)."""
        gradient, factor, kept, summed = self._aligned(total.shape, gradient)
        if not summed:
            squared = gradient.square().sum(0)
            if factor is not None:
                squared *= factor.square()
            total += squared.sum(0).view(total.shape)
            return
        # One cotangent at a time, through one buffer: the product stays in the cache.
        product = torch.empty_like(gradient[0])
        for g in gradient:
            values = g if factor is None else torch.mul(g, factor, out=product)
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
        """G as (M, P, R, *sample), the factor as (P, R, *sample), axes kept and summed of it."""
        rows = (self.samples, gradient.shape[1] // self.samples)
        factor = None
        if self.factor is not None:
            factor = self.factor().to(gradient.dtype).unflatten(0, rows)
        gradient = gradient.unflatten(1, rows)
        sample = gradient.shape[2:]
        if len(shape) == len(sample):  # (1, ...): w has no axis of samples either
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
    if not kept or max(summed) < min(kept):
        return values.sum([axis + 1 for axis in summed]).reshape(len(values), -1)
    # Along the last axes a product with ones is several times faster than `sum`.
    extents = values.shape[1:]
    single = [axis for axis, extent in enumerate(extents) if extent == 1]
    order = [0, *(axis + 1 for axis in (*kept, *single, *summed))]
    columns = values.permute(order).reshape(-1, prod(extents[axis] for axis in summed))
    return torch.mv(columns, columns.new_ones(columns.shape[1])).view(len(values), -1)


def pull_back(
    square: Elementwise, derived: Tensor, parameter: Tensor, total: Tensor, gradient: Tensor
) -> None:
    """Add the squares for a parameter behind a derived tensor.

    Args:
        square: How the derived tensor is used.
        derived: The tensor, with its autograd graph.
        parameter: One of the leaves of that graph.
        total: Running sum of the parameter's shape, changed in place.
        gradient: Of the output, shape (M, P * R, ...).
    """
    rows = square.of_each(derived.shape, gradient).flatten(0, 1).to(derived.dtype)

    def one(row: Tensor) -> Tensor:
        return torch.autograd.grad(derived, parameter, row, retain_graph=True)[0]

    for part in rows.split(max(1, PULLED // parameter.numel())):
        total += torch.func.vmap(one)(part).to(total.dtype).square_().sum(0)


def gram_pairs_count(positions: int) -> int:
    """Number of pairs t <= t'."""
    return positions * (positions + 1) // 2


def gram_pays(cotangents: int, positions: int) -> bool:
    """Whether the pairs of positions cost less than M products of T positions and M squarings."""
    return gram_pairs_count(positions) <= cotangents * (positions + SQUARE) / 2


def pairs(positions: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All t <= t', and how often each counts: 1 on the diagonal, 2 off it."""
    first, second = torch.triu_indices(positions, positions, device=like.device)
    return first, second, torch.where(first == second, 1.0, 2.0).to(like.dtype)


def gradient_pairs(gradient: Tensor) -> Tensor:
    """sum_m g[m,l,t,o] g[m,l,t',o] for all t <= t'.

    Args:
        gradient: Shape (M, P, T, O).

    Returns:
        Shape (pairs, P, O).
    """
    samples, positions, outputs = gradient.shape[1:]
    if positions == 1:
        return gradient.square().sum(0).permute(1, 0, 2)
    first, second = torch.triu_indices(positions, positions, device=gradient.device)
    if positions <= 4:
        by_position = gradient.permute(2, 0, 1, 3)
        result = gradient.new_empty(len(first), samples, outputs)
        for row, t, u in zip(result, first.tolist(), second.tolist(), strict=True):
            torch.sum(by_position[t] * by_position[u], 0, out=row)
        return result
    columns = gradient.permute(1, 3, 2, 0).reshape(samples * outputs, positions, -1)  # (PO, T, M)
    grams = torch.bmm(columns, columns.transpose(1, 2)).view(samples, outputs, -1)
    return grams[:, :, first * positions + second].permute(2, 0, 1)


def _reached(gradient: Tensor) -> Tensor | None:
    """Positions with a gradient, where they are few (a ViT's last block: the class token), or None.

    All of them are searched only if the first sample promises to drop at least half. Sums of
    absolute values: `any` of floats is several times slower.
    """
    positions = gradient.shape[2]
    if positions == 1 or 2 * int((gradient[0, 0].abs().sum(-1) != 0).sum()) > positions:
        return None
    reached = (gradient.abs().sum((0, 1, 3)) != 0).nonzero()[:, 0]
    return reached if len(reached) < positions else None


def _add_direct(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """The third way: total (O, I), gradient (M, P, O, T), inputs (P, T, I)."""
    cotangents, samples, outputs, positions = gradient.shape
    width = inputs.shape[2]
    if cotangents * outputs * width <= 2 * CACHE:
        jacobian = inputs.new_empty(cotangents, outputs, width)
        ones, row = inputs.new_ones(1, cotangents), inputs.new_zeros(1, outputs * width)
        for sample in range(samples):
            torch.bmm(
                gradient[:, sample],
                inputs[sample].expand(cotangents, positions, width),
                out=jacobian,
            )
            row.addmm_(ones, jacobian.view(cotangents, -1).square_())
        total += row.view_as(total)
        return
    rows = -(-outputs // -(-outputs * width // CACHE))
    for start in range(0, outputs, rows):
        part = total[start : start + rows]
        jacobian = part.new_empty(part.shape)
        for sample in range(samples):
            for m in range(cotangents):
                torch.mm(gradient[m, sample, start : start + rows], inputs[sample], out=jacobian)
                part.addcmul_(jacobian, jacobian)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 where the model computes in float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32

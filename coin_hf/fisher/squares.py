"""Sums of squared per-sample gradients, without forming the gradients.

A weight that multiplies an input a[l, t] (T positions per sample) receives from cotangent m the
per-sample gradient J[m, l] = sum_t g[m, l, t] a[l, t]^T. The Fisher needs the sum over m and l of
its *square*, taken after the sum over t. Of two methods, the one with fewer operations is used:

    few t    sum_m (sum_t g_t a_t)^2 = sum_{t,t'} (sum_m g_t g_t') (a_t a_t'), M drops out
    else     J itself, one sample at a time, in a buffer that stays in the cache

A convolution is such a map of its patches; in the first method it is one map per tap, over only
those positions whose input is not padding.

Shapes: M cotangents, P samples, T positions, O outputs, I inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from coin_hf.networks.matmul import product

CACHE = 512 * 1024  # elements of J alive at once in the direct method: they are reread at once
LARGE = 2**26  # the same on an accelerator
PAIRS = 2**20  # elements of products of two positions alive at once
SQUARE = 20  # cost of squaring and adding one element of J, in multiply-adds of a matrix product
PAIR = 35  # cost of multiplying and adding an element of a pair of positions, in the same

Meeting = tuple[list[int], list[int]]
"""The positions of a tap: output positions, ascending, and the input position for each."""


def add_products(
    total: Tensor, gradient: Tensor, inputs: Tensor, bias: Tensor | None = None
) -> None:
    """Add sum_{m,l} (sum_t g[m,l,t,o] a[l,t,i])^2 to total[o,i].

    Args:
        total: Shape (O, I), changed in place.
        gradient: g, shape (M, P, T, O).
        inputs: a, shape (P, T, I).
        bias: Shape (O,), changed in place: sum_{m,l} (sum_t g[m,l,t,o])^2 is added.
    """
    reached = _reached(gradient)
    if reached is not None:
        gradient, inputs = gradient[:, :, reached], inputs[:, reached]
    positions = list(range(inputs.shape[1]))
    if not positions:
        return
    everywhere = [(positions, positions)]
    by_pairs = pairs_pay(everywhere, gradient.shape[0], gradient.shape[3], inputs.shape[2])
    if not by_pairs and gradient.device.type == "cpu":
        add_jacobians(total, gradient, inputs, bias)
        return
    if by_pairs:
        add_pairs(total[..., None], gradient, inputs, everywhere)
    else:  # many samples at once, to keep an accelerator busy
        add_grouped_products(total[None], gradient[:, :, None], inputs[:, None])
    if bias is not None:
        bias += gradient.sum(2).square_().sum((0, 1))


def add_pairs(total: Tensor, gradient: Tensor, inputs: Tensor, meetings: Sequence[Meeting]) -> None:
    """Add sum_{m,l} (sum_t g[m,l,t,o] a[l,s(d,t),c])^2 to total[o,c,d], by pairs of positions.

    Args:
        total: Shape (O, C, D) for D taps, changed in place.
        gradient: g, shape (M, P, T, O).
        inputs: a, shape (P, S, C).
        meetings: For each tap d the positions t and s(d, t).
    """
    positions, outputs = gradient.shape[2:]
    first, second = torch.triu_indices(positions, positions, device=gradient.device)
    number = torch.zeros(positions, positions, dtype=torch.long, device=gradient.device)
    number[first, second] = torch.arange(len(first), device=gradient.device)
    by_tap = [_pairs_of(meeting, number) for meeting in meetings]
    most = PAIRS // outputs
    if gradient.device.type != "cpu":
        most = LARGE // max(outputs, inputs.shape[2])
    step = max(1, most // len(first))
    for g, a in zip(gradient.split(step, 1), inputs.split(step), strict=True):
        grams = position_pairs(g, mirrored=True)  # (p, pairs, O)
        for tap, (seen, pairs) in enumerate(by_tap):
            if len(pairs) == 0:  # a tap that sees only padding
                continue
            products = position_pairs(a[None, :, seen])  # (p, pairs, C)
            part = grams if len(pairs) == len(first) else grams[:, pairs]
            total[..., tap] += _contracted(part.flatten(0, 1), products.flatten(0, 1))


def _contracted(left: Tensor, right: Tensor) -> Tensor:
    """Return sum_r left[r,o] right[r,c], shape (O, C).

    `product` transposes its rows in memory, not the matrix: make the smaller side the rows, unless
    transposing the result costs more.
    """
    rows, outputs, inputs = *left.shape, right.shape[1]
    if rows * outputs <= rows * inputs + outputs * inputs:
        return product(left.t(), right.t())
    return product(right.t(), left.t()).t()


def _pairs_of(meeting: Meeting, number: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tap's input positions and the indices of its pairs of output positions."""
    t, s = (torch.tensor(each, dtype=torch.long, device=number.device) for each in meeting)
    first, second = torch.triu_indices(len(t), len(t), device=number.device)
    return s, number[t[first], t[second]]


def add_jacobians(
    total: Tensor, gradient: Tensor, inputs: Tensor, bias: Tensor | None = None
) -> None:
    """Add the same as `add_products`, from the per-sample gradients themselves.

    Args:
        total: Shape (O, I), changed in place.
        gradient: g, shape (M, P, T, O).
        inputs: a, shape (P, T, I).
        bias: Shape (O,), changed in place, or None.
    """
    cotangents, samples, positions, outputs = gradient.shape
    columns = inputs.transpose(1, 2)  # (P, I, T)
    if bias is not None:  # the weight of one more input, always 1
        columns = torch.cat([columns, columns.new_ones(samples, 1, positions)], 1)
    columns = columns.contiguous()
    width = columns.shape[1]
    block = max(1, min(cotangents, CACHE // (outputs * width)))
    rows = max(1, min(width, CACHE // (outputs * block)))
    sums = total.new_zeros(width, block * outputs)
    for sample in range(samples):
        for g in gradient[:, sample].split(block):
            weight = g.transpose(0, 1).reshape(positions, -1).t()  # (block * O, T)
            for part, into in zip(columns[sample].split(rows), sums.split(rows), strict=True):
                jacobian = product(part, weight)
                into[:, : jacobian.shape[1]].addcmul_(jacobian, jacobian)
    squares = sums.unflatten(1, (block, outputs)).sum(1).t()  # (O, I) or (O, I + 1)
    total += squares[:, : total.shape[1]]
    if bias is not None:
        bias += squares[:, -1]


def add_grouped_products(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """Add sum_{m,l} (sum_t g[m,l,q,t,o] a[l,q,t,i])^2 to total[q,o,i] for each group q.

    Args:
        total: Shape (Q, O, I), changed in place.
        gradient: g, shape (M, P, Q, T, O).
        inputs: a, shape (P, Q, T, I).
    """
    cotangents, samples, groups, _, outputs = gradient.shape
    size = groups * cotangents * outputs * inputs.shape[-1]
    step = max(1, (CACHE if gradient.device.type == "cpu" else LARGE) // size)
    for start in range(0, samples, step):
        part = slice(start, start + step)
        g = gradient[:, part].permute(1, 2, 0, 4, 3)  # (p, Q, M, O, T)
        jacobian = g.flatten(2, 3) @ inputs[part]  # (p, Q, M * O, I)
        total += jacobian.square_().unflatten(2, (cotangents, outputs)).sum((0, 2))


def pairs_pay(meetings: Sequence[Meeting], cotangents: int, outputs: int, inputs: int) -> bool:
    """Return whether pairs of positions cost less than the per-sample gradients.

    Args:
        meetings: The positions of each tap.
        cotangents: M.
        outputs: O.
        inputs: C, channels of a tap.
    """
    most = max((len(outs) for outs, _ in meetings), default=0)
    pairs = sum(len(outs) * (len(outs) + 1) // 2 for outs, _ in meetings)
    by_pairs = pairs * (outputs * inputs + PAIR * inputs)
    by_pairs += most * (most + 1) // 2 * PAIR * cotangents * outputs
    return by_pairs <= len(meetings) * cotangents * outputs * inputs * (most + SQUARE)


def position_pairs(values: Tensor, *, mirrored: bool = False) -> Tensor:
    """Return sum_m v[m,l,t,o] v[m,l,t',o] for all t <= t'.

    Args:
        values: v, shape (M, P, T, O).
        mirrored: Whether a pair (t, t') also counts for (t', t): twice the sum.

    Returns:
        Shape (P, T (T + 1) / 2, O).
    """
    samples, positions, outputs = values.shape[1:]
    if values.device.type != "cpu":
        return pairs_at_once(values, mirrored=mirrored)
    result = values.new_empty(samples, positions * (positions + 1) // 2, outputs)
    start = 0
    for t in range(positions):
        into = result[:, start : start + positions - t]  # t with t and all that follow
        one = values[:, :, t : t + 1]
        if mirrored:
            one = 2 * one
        torch.mul(values[0, :, t:], one[0], out=into)
        for v, at in zip(values[1:], one[1:], strict=True):
            into.addcmul_(v[:, t:], at)
        if mirrored:
            into[:, 0] /= 2
        start += positions - t
    return result


def pairs_at_once(values: Tensor, *, mirrored: bool = False) -> Tensor:
    """Return the same by one batched product, twice the work: calls cost an accelerator more.

    Args:
        values: v, shape (M, P, T, O).
        mirrored: As above.

    Returns:
        Shape (P, T (T + 1) / 2, O).
    """
    positions = values.shape[2]
    first, second = torch.triu_indices(positions, positions, device=values.device)
    result = torch.einsum("mpto,mpso->ptso", values, values)[:, first, second]
    if mirrored:
        result *= 1.0 + (first != second)[:, None]
    return result


def _reached(gradient: Tensor) -> Tensor | None:
    """Return the positions with a gradient if few (a ViT's last block: the class token), or None.

    All are searched only if the first sample promises to drop at least half. Sums of absolute
    values: `any` on floats is several times slower.
    """
    positions = gradient.shape[2]
    if positions == 1 or 2 * int((gradient[0, 0].abs().sum(-1) != 0).sum()) > positions:
        return None
    reached = (gradient.abs().sum((0, 1, 3)) != 0).nonzero()[:, 0]
    return reached if len(reached) < positions else None


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 if the model computes in float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32

"""Place the rows of a head, or columns of logits, among those of more classes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def spread(values: Tensor, rows: Sequence[int], count: int, *, axis: int = 0) -> Tensor:
    """Place slices among more, the others zero: S v with S the (count, n) selection.

    Args:
        values: n slices along an axis.
        rows: The new place of each, n different numbers below `count`.
        count: Number of slices afterwards.
        axis: The axis.

    Returns:
        A new tensor with `count` slices along it.

    Example:
        >>> spread(torch.tensor([5.0, 7.0]), [2, 0], 3)
        tensor([7., 0., 5.])
    """
    shape = list(values.shape)
    shape[axis] = count
    made = values.new_zeros(shape)
    places = torch.tensor(rows, dtype=torch.long, device=values.device)
    return made.index_copy_(axis, places, values)

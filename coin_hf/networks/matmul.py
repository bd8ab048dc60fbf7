"""Matrix products by the faster of torch's two CPU libraries."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows by a transposed matrix, as F.linear does.

    On a CPU torch's own products use MKL, which reserves its widest instructions for Intel. oneDNN,
    which torch's convolutions use, takes the widest the CPU has: on AMD it is slightly to more than
    twice as fast.

    Args:
        rows: Shape (..., n).
        weight: Shape (m, n), in either memory order.

    Returns:
        A new tensor of shape (..., m).
    """
    single = rows.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if single and rows.device.type == "cpu" and rows.numel() and _has_onednn():
        return _by_onednn(rows, weight)
    return F.linear(rows, weight)


def gram(rows: Tensor) -> Tensor:
    """Multiply a matrix by its own transpose, each product of two columns once.

    Args:
        rows: Shape (R, n).

    Returns:
        rows^T rows, shape (n, n), symmetric to the bit.
    """
    columns = rows.T.contiguous()
    count = len(columns)
    found = rows.new_empty(count, count)
    size = max(256, -(-count // 8))
    for low in range(0, count, size):
        high = min(low + size, count)
        part = product(columns[low:high], columns[low:])
        found[low:high, low:] = part
        found[high:, low:high] = part[:, high - low :].T
    return found


def _by_onednn(rows: Tensor, weight: Tensor) -> Tensor:
    """Call the operator that torch's compiler uses for F.linear; it has no public name."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


@cache
def _has_onednn() -> bool:
    """Whether the operator exists and works as expected: tested once, on a known product."""
    rows, weight = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    try:
        return torch.equal(_by_onednn(rows, weight), weight.t())
    except (AttributeError, RuntimeError, TypeError):
        return False

"""Matrix products by the faster of the two libraries that torch carries on a CPU."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows by a transposed matrix, as F.linear does.

    On a CPU torch's own products go to MKL, which keeps its widest instructions for Intel; oneDNN,
    which its convolutions go to, takes whatever the CPU has: from a little faster to more than
    twice as fast on AMD's.

    Args:
        rows: Shape (..., n).
        weight: Shape (m, n), in either order of memory.

    Returns:
        Shape (..., m), of a new tensor.
    """
    single = rows.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if single and rows.device.type == "cpu" and rows.numel() and _has_onednn():
        return _by_onednn(rows, weight)
    return F.linear(rows, weight)


def _by_onednn(rows: Tensor, weight: Tensor) -> Tensor:
    """Call the product that torch's compiler makes of F.linear; torch offers no other name."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


@cache
def _has_onednn() -> bool:
    """Whether that name exists and means what it did: tried once, on a product that is known."""
    rows, weight = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    try:
        return torch.equal(_by_onednn(rows, weight), weight.t())
    except (AttributeError, RuntimeError, TypeError):
        return False

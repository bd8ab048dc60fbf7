"""The exact estimator: one cotangent per class."""

import torch
from torch import Tensor


def cotangents(samples: int, classes: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the K unit vectors of the logits, the same for every sample.

    sum_k (e_k^T J)^2 is the diagonal of J^T J itself.

    Args:
        samples: P, the number of samples in the chunk.
        classes: K.
        dtype: Dtype of the logits.
        device: Device of the logits.

    Returns:
        Shape (K, P, K).
    """
    eye = torch.eye(classes, dtype=dtype, device=device)
    return eye[:, None, :].expand(classes, samples, classes)

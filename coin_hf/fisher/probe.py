"""The probe estimator: m random directions of the logits instead of all K.

For V of shape (K, m) with E[V V^T] = I, E[sum_j (v_j^T J)^2] is the diagonal of J^T J. The columns
of V are m orthonormal vectors, uniform in direction, times sqrt(K / m): no direction is counted
twice, so the error is smaller than that of independent signs or Gaussians at equal cost, and zero
at m = K.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def cotangents(
    indices: Sequence[int],
    classes: int,
    *,
    probes: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw scaled orthonormal probes for each sample from its own index.

    Args:
        indices: Positions of the P samples among all samples: a sample gets the same probes in
            any batch and on any process.
        classes: K.
        probes: m, at most K.
        seed: Seed of all draws.
        dtype: Dtype of the logits.
        device: Device of the logits.

    Returns:
        Shape (m, P, K).
    """
    drawn = torch.stack([_probes(index, classes, probes, seed) for index in indices])  # (P, K, m)
    return drawn.permute(2, 0, 1).to(device=device, dtype=dtype)


def _probes(index: int, classes: int, probes: int, seed: int) -> Tensor:
    """Draw for one sample, shape (K, m), on the CPU in float64 so that every device agrees."""
    # torch's CPU generator keeps 32 bits of a seed: hash, so that both numbers count.
    digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    normal = torch.randn(classes, probes, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q * (classes / probes) ** 0.5

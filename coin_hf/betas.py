"""Coding weights: valid, or refused with the reason."""

import math
from collections.abc import Sequence


def check_betas(betas: Sequence[float], experts: int) -> None:
    """Check coding weights against the number of experts.

    Args:
        betas: Coding weights, shape (N,).
        experts: N.

    Raises:
        ValueError: If there are not N of them, one is not positive, or they do not sum to 1.
    """
    shown = ", ".join(f"{beta:.10g}" for beta in betas)
    if len(betas) != experts:
        raise ValueError(
            f"betas has {len(betas)} values ({shown}) for {experts} experts: give one for each"
        )
    if not all(math.isfinite(beta) and beta > 0 for beta in betas):
        raise ValueError(f"betas must all be positive, got {shown}")
    if abs(math.fsum(betas) - 1) > 1e-6:
        raise ValueError(f"betas must sum to 1, but {shown} sum to {math.fsum(betas):.10g}")

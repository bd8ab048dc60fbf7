"""Choose the directions of the logits to differentiate."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from coin_hf.fisher import exact, probe

Estimator = Literal["exact", "probe", "auto"]
PROBES_FROM = 10
"""The K from which `auto` is `probe`: what that costs is in docs/pages/experiments/probes.md."""


def resolve_estimator(num_classes: int, estimator: Estimator = "auto") -> str:
    """Choose the estimator for a network with K classes.

    Args:
        num_classes: K.
        estimator: The requested one; "auto" is "exact" for K < 10 and "probe" from there.

    Returns:
        "exact" or "probe".

    Raises:
        ValueError: If `estimator` is not one of the three names.

    Example:
        >>> resolve_estimator(9), resolve_estimator(10), resolve_estimator(1000, "exact")
        ('exact', 'probe', 'exact')
    """
    match estimator:
        case "exact" | "probe":
            return estimator
        case "auto":
            return "exact" if num_classes < PROBES_FROM else "probe"
    raise ValueError(
        f"estimator={estimator!r}: expected 'exact', 'probe' or 'auto'; 'auto' is exact below "
        f"{PROBES_FROM} classes"
    )


def cotangents_for(
    logits: Tensor, indices: Sequence[int], *, estimator: Estimator, probes: int, seed: int
) -> Tensor:
    """Return the cotangents of one chunk.

    Args:
        logits: Shape (P, K); its values do not matter.
        indices: Global positions of the P samples.
        estimator: "exact", "probe" or "auto".
        probes: Probes per sample, used by "probe" only; from K on the unit vectors are used,
            which are as good as any other K orthonormal vectors.
        seed: Seed of the probes.

    Returns:
        Shape (M, P, K), M = K (exact) or M = probes.
    """
    samples, classes = logits.shape
    if resolve_estimator(classes, estimator) == "exact" or probes >= classes:
        return exact.cotangents(samples, classes, dtype=logits.dtype, device=logits.device)
    return probe.cotangents(
        indices, classes, probes=probes, seed=seed, dtype=logits.dtype, device=logits.device
    )

"""Task arithmetic: the foundation plus the experts' summed differences from it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coin_hf.coders.averaging import check_thetas

ALPHA_CANDIDATES = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Candidates of `alpha: auto`: 0.05 ... 1.0 in steps of 0.05."""


def task_arithmetic(
    thetas: Sequence[Mapping[str, Tensor]],
    foundation: Mapping[str, Tensor],
    *,
    betas: Sequence[float],
    alpha: float,
) -> dict[str, Tensor]:
    """Add scaled task vectors to the foundation.

        theta_c = theta_0 + alpha sum_i N beta_i (theta_i - theta_0)

    With equal betas, N beta_i = 1: the published sum. With alpha = 1 / N it is the beta-weighted
    mean for any foundation. Source: arXiv:2212.04089, section 2.

    Args:
        thetas: Parameters of N experts by name.
        foundation: theta_0, the parameters from which all of them were fine-tuned, same shapes.
        betas: Coding weights, shape (N,), positive, summing to 1.
        alpha: Scale of the task vectors, in (0, 1].

    Returns:
        The coded parameters in the experts' dtype, computed in float32 (float64 for float64
        experts) and rounded once.

    Raises:
        ValueError: If betas or alpha are not valid, or names or shapes differ.

    Example:
        >>> thetas = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]
        >>> task_arithmetic(thetas, {"w": torch.tensor([1.0])}, betas=[0.5, 0.5], alpha=0.25)
        {'w': tensor([2.])}
    """
    check_thetas(thetas, betas)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
    _check_foundation(foundation, thetas[0])
    coded = {}
    for name, like in thetas[0].items():
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        start = foundation[name].to(device=like.device, dtype=dtype)
        value = start.clone()
        for beta, theta in zip(betas, thetas, strict=True):
            value += alpha * len(thetas) * beta * (theta[name].to(dtype) - start)
        coded[name] = value.to(like.dtype)
    return coded


def _check_foundation(foundation: Mapping[str, Tensor], theta: Mapping[str, Tensor]) -> None:
    if foundation.keys() != theta.keys():
        odd = sorted(foundation.keys() ^ theta.keys())
        raise ValueError(f"the foundation and the experts do not both have {', '.join(odd)}")
    for name, value in theta.items():
        if foundation[name].shape != value.shape:
            raise ValueError(
                f"'{name}' has shape {tuple(foundation[name].shape)} in the foundation and "
                f"{tuple(value.shape)} in the experts"
            )

"""COIN: the Fisher-weighted average of the parameters, arXiv:2409.01420."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coin_hf.coders.averaging import check_thetas, weighted_mean

ROUNDING = 1e-9
"""Sums of squares computed from products can round below zero, by at most this fraction of the
parameter's largest entry; such entries count as zero."""


def fisher_average(
    thetas: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    *,
    betas: Sequence[float],
    lam: float,
) -> dict[str, Tensor]:
    """Compute the coded parameters in closed form.

        theta_c = sum_i bbar_i (F_i + lam) theta_i / sum_i bbar_i (F_i + lam)    elementwise
        bbar_i  = beta_i sum_j beta_j = beta_i

    It minimises sum_i bbar_i (theta - theta_i)^T diag(F_i + lam) (theta - theta_i), the quadratic
    bound of the coding loss. Source: arXiv:2409.01420, eq. (17).

    Args:
        thetas: Parameters of N experts by name.
        fishers: Their diagonal Fishers by name, same shapes, from `diagonal_fisher`, all on the
            same samples.
        betas: Coding weights, shape (N,), positive, summing to 1.
        lam: The penalty lambda >= 0, in the Fisher's unit; as it grows, theta_c tends to the
            beta-weighted mean.

    Returns:
        The coded parameters in the experts' dtype, computed in float32 (float64 for float64
        experts). Where lam = 0 and all Fishers are 0, the beta-weighted mean.

    Raises:
        ValueError: If betas or lam are not valid, or names or shapes differ, or a Fisher value is
            negative or not finite.

    Example:
        >>> thetas = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}]
        >>> fishers = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
        >>> fisher_average(thetas, fishers, betas=[0.5, 0.5], lam=0.0)
        {'w': tensor([0.7500])}
    """
    check_thetas(thetas, betas)
    if not 0 <= lam < float("inf"):
        raise ValueError(f"lam must be a finite number >= 0, got {lam}")
    if len(fishers) != len(thetas):
        raise ValueError(f"expected {len(thetas)} Fishers, one for each expert, got {len(fishers)}")
    coded = {}
    for name, value in thetas[0].items():
        weights = [_weight(i, name, value, f, lam) for i, f in enumerate(fishers)]
        terms = [beta * weight for beta, weight in zip(betas, weights, strict=True)]
        empty = sum(terms[1:], start=terms[0]) == 0
        if empty.any():
            terms = [term.masked_fill(empty, b) for term, b in zip(terms, betas, strict=True)]
        coded[name] = weighted_mean([theta[name] for theta in thetas], terms)
    return coded


def _weight(
    expert: int, name: str, value: Tensor, fisher: Mapping[str, Tensor], lam: float
) -> Tensor:
    """Return F_i + lam for one parameter, checked, on the parameter's device."""
    if name not in fisher:
        raise ValueError(f"the Fisher of expert {expert} lacks '{name}'")
    f = fisher[name]
    if f.shape != value.shape:
        raise ValueError(
            f"the Fisher of expert {expert} has shape {tuple(f.shape)} for '{name}', expected "
            f"{tuple(value.shape)}"
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    f = f.to(device=value.device, dtype=dtype)
    if f.numel():
        low, high = f.aminmax()  # one pass; a NaN makes both NaN
        if not (low >= -ROUNDING * high and high < float("inf")):
            message = f"the Fisher of expert {expert} is negative or not finite in '{name}'"
            raise ValueError(message)
        if low < 0:
            f = f.clamp(min=0)
    return f + lam

"""RegMean: merge each linear map by least squares on the experts' own inputs."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from coin_hf.coders.averaging import check_thetas, weighted_mean

RIDGE = 1e-6
"""First ridge on the diagonal, relative to its mean; times ten until it suffices."""


def regmean(
    thetas: Sequence[Mapping[str, Tensor]],
    grams: Sequence[Mapping[str, Tensor]],
    *,
    betas: Sequence[float],
    scale: float = 0.9,
    transposed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Fit each linear map to the experts' maps on their own inputs.

        W = (sum_i beta_i G_i)^-1 sum_i beta_i G_i W_i

    W, the map as a matrix (inputs, outputs), minimises sum_i beta_i E ||x (W - W_i)||^2 over the
    inputs x of expert i. The off-diagonals of G_i are first multiplied by `scale`. With equal betas
    this is the published formula. Biases, norms and all else are averaged.

    Cholesky solves for the difference from the weighted mean, with a ridge on the diagonal:
    directions without input keep the mean, and equal experts are returned unchanged.
    Source: arXiv:2212.09849, eq. (2) and section 3.2.

    Args:
        thetas: Parameters of N experts by name.
        grams: Each expert's Gram matrices from `gram_matrices`: weight name -> shape (n, n). The
            expert's weight, flattened after its first axis, has shape (outputs, n), or
            (n, outputs) if it is `transposed`.
        betas: Coding weights, shape (N,), positive, summing to 1.
        scale: Factor on the off-diagonals, in [0, 1].
        transposed: Names of the weights stored as (inputs, outputs), from `transposed_weights`.

    Returns:
        The coded parameters in the experts' dtype; solved in float64.

    Raises:
        ValueError: If betas or scale are not valid, or names or shapes differ, or a Gram matrix
            is not finite.
    """
    check_thetas(thetas, betas)
    if not 0 <= scale <= 1:
        raise ValueError(f"scale must lie in [0, 1], got {scale}")
    _check_grams(thetas, grams, transposed)
    coded = {}
    for name, like in thetas[0].items():
        values = [theta[name] for theta in thetas]
        coded[name] = weighted_mean(values, list(betas))
        if name in grams[0] and any(not torch.equal(values[0], value) for value in values[1:]):
            weights = [_matrix(value, name in transposed) for value in values]
            merged = _solve(weights, [gram[name] for gram in grams], betas, scale)
            merged = merged.T if name in transposed else merged
            coded[name] = merged.reshape(like.shape).to(device=like.device, dtype=like.dtype)
    return coded


def _matrix(weight: Tensor, transposed: bool) -> Tensor:
    """View a weight as the matrix (outputs, n)."""
    return weight.T if transposed else weight.flatten(1)


def _solve(
    weights: Sequence[Tensor], grams: Sequence[Tensor], betas: Sequence[float], scale: float
) -> Tensor:
    """Return the merged map (outputs, n), in float64 on the Grams' device (the CPU for mps)."""
    device = "cpu" if grams[0].device.type == "mps" else grams[0].device
    wide = [weight.to(device, torch.float64) for weight in weights]
    mean = weighted_mean(wide, list(betas))
    total = torch.zeros_like(grams[0], dtype=torch.float64, device=device)
    right = torch.zeros_like(mean.T)  # (n, outputs)
    for weight, gram, beta in zip(wide, grams, betas, strict=True):
        scaled = beta * _shrunk(gram.to(device, torch.float64), scale)
        total += scaled
        right += scaled @ (weight - mean).T
    diagonal = total.diagonal()
    ridge = RIDGE * diagonal.mean().item()
    if ridge == 0:
        return mean  # all inputs are zero
    while True:
        diagonal += ridge
        factor, failed = torch.linalg.cholesky_ex(total)
        if not failed:
            return mean + torch.cholesky_solve(right, factor).T
        ridge *= 10


def _shrunk(gram: Tensor, scale: float) -> Tensor:
    """Scale the off-diagonals."""
    return scale * gram + (1 - scale) * torch.diag(gram.diagonal())


def _check_grams(
    thetas: Sequence[Mapping[str, Tensor]],
    grams: Sequence[Mapping[str, Tensor]],
    transposed: Collection[str],
) -> None:
    if len(grams) != len(thetas):
        raise ValueError(f"expected the Grams of {len(thetas)} experts, got {len(grams)}")
    for i, gram in enumerate(grams):
        if gram.keys() != grams[0].keys():
            odd = sorted(gram.keys() ^ grams[0].keys())
            raise ValueError(f"experts 0 and {i} do not both have Grams of {', '.join(odd)}")
        for name, matrix in gram.items():
            if name not in thetas[0]:
                raise ValueError(f"there is a Gram of '{name}', which is no parameter")
            n = _matrix(thetas[0][name], name in transposed).shape[1]
            if matrix.shape != (n, n):
                raise ValueError(
                    f"the Gram of '{name}' of expert {i} has shape {tuple(matrix.shape)}, "
                    f"expected {(n, n)}"
                )
            if not matrix.isfinite().all():
                raise ValueError(f"the Gram of '{name}' of expert {i} is not finite")

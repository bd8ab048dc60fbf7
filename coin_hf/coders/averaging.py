"""Plain averaging: the beta-weighted mean of the parameters, COIN's baseline and limit."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from coin_hf.erasure.betas import check_betas


def average(thetas: Sequence[Mapping[str, Tensor]], *, betas: Sequence[float]) -> dict[str, Tensor]:
    """Average parameters: theta_c = sum_i beta_i theta_i.

    Args:
        thetas: Parameters of N experts by name, equal names and shapes.
        betas: Coding weights, shape (N,), positive, summing to 1.

    Returns:
        The averaged parameters, in the experts' dtype.

    Raises:
        ValueError: If betas are not valid, or names or shapes differ.
    """
    check_thetas(thetas, betas)
    return {
        name: weighted_mean([theta[name] for theta in thetas], list(betas)) for name in thetas[0]
    }


def average_buffers(
    buffers: Sequence[Mapping[str, Tensor]], *, betas: Sequence[float]
) -> dict[str, Tensor]:
    """Average floating buffers (BatchNorm statistics); take integer ones from expert 0.

    Args:
        buffers: Buffers of N experts by name.
        betas: Coding weights, shape (N,).

    Returns:
        The coded model's buffers.

    Raises:
        ValueError: If betas are not valid, or names or shapes differ.
    """
    check_thetas(buffers, betas)
    return {
        name: weighted_mean([buffer[name] for buffer in buffers], list(betas))
        if value.is_floating_point()
        else value.clone()
        for name, value in buffers[0].items()
    }


def weighted_mean(values: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """Return sum_i w_i v_i / sum_i w_i, elementwise, never outside [min_i v_i, max_i v_i].

    It is computed as v_0 + sum_i w_i (v_i - v_0) / sum_i w_i in float32 (float64 for float64
    values) and rounded once: where all values are equal, the result is bit for bit that value.

    Args:
        values: N tensors of one shape and dtype.
        weights: N numbers, or tensors of that shape, not negative, with a positive sum.

    Returns:
        The mean, in the values' dtype.
    """
    dtype = torch.float64 if values[0].dtype == torch.float64 else torch.float32
    wide = [value.to(dtype) for value in values]
    total = sum(weights[1:], start=weights[0])
    mean = wide[0].clone()
    for value, weight in zip(wide[1:], weights[1:], strict=True):
        mean += (value - wide[0]).mul_(weight / total)
    low, high = reduce(torch.minimum, wide), reduce(torch.maximum, wide)
    # Equal values are taken as they are: arithmetic would turn -0.0 into 0.0.
    return torch.where(low == high, wide[0], mean.clamp_(low, high)).to(values[0].dtype)


def check_thetas(thetas: Sequence[Mapping[str, Tensor]], betas: Sequence[float]) -> None:
    """Check that experts match each other and their betas.

    Args:
        thetas: Tensors of N experts by name.
        betas: Coding weights, shape (N,).

    Raises:
        ValueError: If betas are not valid, or names or shapes differ.
    """
    check_betas(betas, len(thetas))
    for i, theta in enumerate(thetas[1:], start=1):
        if theta.keys() != thetas[0].keys():
            odd = sorted(theta.keys() ^ thetas[0].keys())
            raise ValueError(f"experts 0 and {i} do not both have {', '.join(odd)}")
        for name, value in theta.items():
            if value.shape != thetas[0][name].shape:
                raise ValueError(
                    f"'{name}' has shape {tuple(thetas[0][name].shape)} in expert 0 and "
                    f"{tuple(value.shape)} in expert {i}"
                )

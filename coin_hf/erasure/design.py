"""Design coding weights of low error amplification for N experts and M coded models."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coin_hf.erasure.amplification import square_parts, worst_amplification
from coin_hf.erasure.betas import Rows

Matrix = NDArray[np.floating[Any]]
STEPS, STARTS, RATE = 400, 12, 0.05
"""Gradient descent: steps per start, random starts, initial learning rate."""
DIGITS = 4
"""Decimals of designed betas, few enough to read and type."""


@lru_cache(maxsize=64)
def design(experts: int, coded: int) -> Rows:
    """Design coding weights with a small worst amplification.

    For one coded model equal weights are optimal. For more, gradient descent from the best
    normalised Vandermonde matrix and from seeded random ones minimises a soft maximum of
    -log sigma_min over all square submatrices (see `coin_hf.erasure.amplification`), over matrices
    with positive rows that sum to 1. The best one found is rounded to four decimals and kept if it
    beats the Vandermonde matrix. The result is deterministic.

    Args:
        experts: N >= 2.
        coded: M >= 1.

    Returns:
        Shape (M, N); its worst amplification is never above `vandermonde(N, M)`'s.

    Raises:
        ValueError: If there are fewer than two experts, or no coded model.

    Example:
        >>> design(2, 2)
        ((0.6667, 0.3333), (0.3333, 0.6667))
    """
    if experts < 2 or coded < 1:
        raise ValueError(
            f"a code needs at least 2 experts and 1 coded model, got {experts} and {coded}"
        )
    if coded == 1:
        return ((1 / experts,) * experts,)
    fallback = vandermonde(experts, coded)
    rng = np.random.default_rng(0)
    starts = [np.array(fallback), *rng.dirichlet(np.ones(experts), size=(STARTS, coded)) + 0.01]
    found = [fallback, *(_rounded(_canonical(_descend(start))) for start in starts)]
    return min(found, key=worst_amplification)  # ties go to the first, so never worse


@lru_cache(maxsize=64)
def vandermonde(experts: int, coded: int) -> Rows:
    """Return the best normalised Vandermonde matrix over a range of positive nodes.

        B[m, i] = x_i^m / sum_j x_j^m,   0 < x_0 < ... < x_{N-1}

    Any such nodes give a code. The candidates are x = 1 ... N, and geometric, equally spaced and
    Chebyshev nodes from 1, for each of about 100 largest nodes or ratios.

    Args:
        experts: N.
        coded: M.

    Returns:
        Shape (M, N), the candidate with the smallest worst amplification.
    """
    powers = np.arange(coded)[:, None]
    tried = (_normalised(nodes**powers) for nodes in _nodes(experts))
    return min(map(_as_rows, tried), key=worst_amplification)


def _nodes(experts: int) -> Iterator[Matrix]:
    number = np.arange(experts)
    yield number + 1.0
    for reach in (*np.linspace(1.05, 6, 100), 8.0, 10.0, 15.0, 20.0, 30.0, 100.0):
        yield np.linspace(1, reach, experts)
        angles = (number + 0.5) * math.pi / experts
        yield np.asarray((1 + reach) / 2 - (reach - 1) / 2 * np.cos(angles))
        if reach < 6:
            yield reach**number


def _descend(start: Matrix) -> Matrix:
    """Minimise the worst amplification by Adam on the logarithms of the weights."""
    coded, experts = start.shape
    parts = [
        (rows[:, :, None], columns[:, None, :])  # index a block of (parts, k, k)
        for order in range(1, min(coded, experts) + 1)
        for rows, columns in square_parts(coded, experts, order)
    ]
    logs = np.log(start)
    first, second = np.zeros_like(logs), np.zeros_like(logs)
    best, least = start, math.inf
    for step in range(STEPS):
        betas = _normalised(np.exp(logs))
        sharpness = 4 * 25 ** (step / STEPS)  # 4 ... 100: the soft maximum tends to the maximum
        worst, gradient = _soft_worst(betas, parts, sharpness)
        if worst < least:
            best, least = betas, worst
        slope = betas * (gradient - (betas * gradient).sum(1, keepdims=True))
        first = 0.9 * first + 0.1 * slope
        second = 0.99 * second + 0.01 * slope**2
        scale = np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-12
        logs = np.log(betas) - RATE * (1 - step / STEPS) * first / (1 - 0.9 ** (step + 1)) / scale
    return best


def _soft_worst(
    betas: Matrix, parts: list[tuple[NDArray[np.intp], NDArray[np.intp]]], sharpness: float
) -> tuple[float, Matrix]:
    """Return the log of the worst amplification and the gradient of its soft maximum.

    d(-log sigma_min) = -u v^T / sigma_min, with the last singular vectors u, v.
    """
    solved = [np.linalg.svd(betas[rows, columns]) for rows, columns in parts]
    sizes = [-np.log(np.maximum(sigma[:, -1], 1e-300)) for _, sigma, _ in solved]
    worst = max(float(size.max()) for size in sizes)
    shares = [np.exp(sharpness * (size - worst)) for size in sizes]
    total = sum(float(share.sum()) for share in shares)
    gradient = np.zeros_like(betas)
    for (rows, columns), (u, sigma, vt), share in zip(parts, solved, shares, strict=True):
        factor = -share / total / np.maximum(sigma[:, -1], 1e-300)
        outer = factor[:, None, None] * u[:, :, -1:] * vt[:, -1:, :]  # (parts, k, k)
        np.add.at(gradient, (rows, columns), outer)
    return worst, gradient


def _normalised(matrix: Matrix) -> Matrix:
    return matrix / matrix.sum(1, keepdims=True)


def _canonical(betas: Matrix) -> Matrix:
    """Sort columns and rows: a permuted code is the same code."""
    betas = betas[:, np.lexsort(-betas[::-1])]
    return betas[np.lexsort(-betas.T[::-1])]


def _rounded(betas: Matrix) -> Rows:
    """Round to `DIGITS` decimals; the largest entry of each row absorbs the remainder."""
    rounded = np.maximum(np.round(betas, DIGITS), 10.0**-DIGITS)
    for row in rounded:
        row[row.argmax()] += 1 - row.sum()
    return _as_rows(np.round(rounded, DIGITS))


def _as_rows(matrix: Matrix) -> Rows:
    return tuple(tuple(row) for row in matrix.tolist())

"""Error amplification of coding weights, and whether they form a code.

Let B be the betas, shape (M, N). With the experts E missing and the coded models C answering,
decoding solves B[C, E] fhat_E = f_C - B[C, rest] f_rest. Every loss of at most M of the N + M
networks (experts E and coded models outside C, |E| <= |C|) is decodable if and only if **every**
square submatrix B[C, E], |C| = |E|, of every order up to min(M, N) is invertible: the generator
matrix [I; B] is then maximum distance separable. Checking order M alone is not enough: a missing
coded model leaves a smaller system to solve. Order 1 means that no beta is 0.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from coin_hf.erasure.betas import Rows, check_betas

SINGULAR = 1e-6
"""Smallest singular value below which a submatrix counts as singular: betas are known only to
1e-6, the tolerance on a row's sum."""
BAD = 1000.0
"""Worst amplification that triggers a warning: float32 then keeps four digits."""


def check_code(rows: Rows) -> None:
    """Check that coding weights can decode every pattern of erasures.

    Args:
        rows: Coding weights, shape (M, N).

    Raises:
        ValueError: If a row is invalid, or a pattern of erasures cannot be decoded; the message
            names it.
    """
    experts = len(rows[0])
    check_betas(rows, experts)
    singular = singular_part(rows)
    if singular is not None:
        coded, missing = (", ".join(map(str, numbers)) for numbers in singular)
        raise ValueError(
            f"these betas are not an erasure code: experts {missing} cannot be recovered from "
            f"coded models {coded} (the square of betas in those rows and columns is singular); "
            f"change a row, or take them from `coin-hf design --experts {experts} --coded "
            f"{len(rows)}`"
        )


def square_parts(
    coded: int, experts: int, order: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Enumerate the square submatrices of one order of an (M, N) matrix, in blocks.

    Args:
        coded: M.
        experts: N.
        order: k <= min(M, N).

    Yields:
        Row and column indices, each of shape (parts, k); one block per set of rows.
    """
    columns = np.array(list(combinations(range(experts), order)), dtype=np.intp)
    for rows in combinations(range(coded), order):
        yield np.tile(np.array(rows, dtype=np.intp), (len(columns), 1)), columns


def smallest_singular_values(
    betas: NDArray[np.float64], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return sigma_min of many square submatrices at once.

    Args:
        betas: Shape (M, N).
        rows: Row indices, shape (parts, k).
        columns: Column indices, shape (parts, k).

    Returns:
        Shape (parts,).
    """
    parts = betas[rows[:, :, None], columns[:, None, :]]  # (parts, k, k)
    return np.asarray(np.linalg.svd(parts, compute_uv=False)[:, -1], dtype=np.float64)


def amplification(rows: Rows, missing: Sequence[int], coded: Sequence[int]) -> float:
    """Return the largest factor by which decoding multiplies the coded answers' error.

        ||fhat_E - f_E|| <= amplification * ||f_C - B[C, :] f||,
        amplification = sigma_max(B[C, E]^+) = 1 / sigma_min(B[C, E])

    Args:
        rows: Coding weights B of a code, shape (M, N).
        missing: The missing experts E.
        coded: The coded models C that answer, at least as many.

    Returns:
        The factor, in the Euclidean norm over the missing experts; 1 / beta_i for one of each.
    """
    part = np.array([[rows[c][i] for i in missing] for c in coded])
    return float(1 / np.linalg.svd(part, compute_uv=False)[-1])


@lru_cache(maxsize=64)
def worst_amplification(rows: Rows) -> float:
    """Return the largest amplification over all ways to lose at most M of the N + M networks.

    It occurs where as many coded models answer as experts are missing: one more answer never
    lowers sigma_min.

    Args:
        rows: Coding weights, shape (M, N).

    Returns:
        The maximum of 1 / sigma_min over all square submatrices of every order; infinite if one is
        exactly singular.
    """
    least = min(value for value, _ in _least_by_order(rows))
    return 1 / least if least > 0 else float("inf")


@lru_cache(maxsize=64)
def singular_part(rows: Rows) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Find a pattern of erasures that cannot be decoded.

    Args:
        rows: Coding weights, shape (M, N), positive.

    Returns:
        The coded models and the missing experts of the most singular submatrix, of the smallest
        order that has one; None if all submatrices of order 2 or more are invertible.
    """
    for value, part in _least_by_order(rows):
        if len(part[0]) > 1 and value < SINGULAR:
            return part
    return None


def _least_by_order(
    rows: Rows,
) -> Iterator[tuple[float, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Yield the smallest sigma_min of each order and the submatrix that has it."""
    betas = np.array(rows)
    coded, experts = betas.shape
    for order in range(1, min(coded, experts) + 1):
        found = []
        for r, c in square_parts(coded, experts, order):
            values = smallest_singular_values(betas, r, c)
            k = int(values.argmin())
            found.append((float(values[k]), (tuple(r[k].tolist()), tuple(c[k].tolist()))))
        yield min(found)


def decoder(
    rows: Rows,
    losses: Sequence[float] | None,
    missing: Sequence[int],
    there: Sequence[int],
) -> tuple[tuple[float, ...], ...]:
    """Return the float64 matrix from the coded models' remainders to the missing answers.

    (W^1/2 A)^+ W^1/2 with A = B[C, E] and W = diag(1 / coding loss); the inverse of A where it is
    square.

    Args:
        rows: The betas B, shape (M, N).
        losses: Coding losses, shape (M,); None for equal weights.
        missing: E, indices of the missing experts.
        there: C, indices of the coded models that answer.

    Returns:
        Shape (E, C).
    """
    part = np.array([[rows[c][i] for i in missing] for c in there])  # (C, E)
    if len(missing) == len(there):
        solved = np.linalg.inv(part)
    else:
        root = np.array([_root_weight(losses, c) for c in there])
        solved = np.linalg.pinv(root[:, None] * part) * root
    return tuple(tuple(row) for row in solved.tolist())


def _root_weight(losses: Sequence[float] | None, c: int) -> float:
    """Return 1 / sqrt(coding loss), relative to the worst; bounded, since a loss may be 0."""
    if losses is None or max(losses) == 0:
        return 1.0
    return float((max(losses) / max(losses[c], 1e-12 * max(losses))) ** 0.5)

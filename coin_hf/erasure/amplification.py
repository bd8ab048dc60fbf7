"""How much a code multiplies the coded models' errors, and whether it is a code at all.

Write B for betas, shape (M, N). When the experts E are missing and the coded models C answer,
decoding solves B[C, E] fhat_E = f_C - B[C, rest] f_rest. Every way to lose at most M of the N + M
networks (experts E, and coded models outside C, |E| <= |C|) is decodable exactly when **every**
square part B[C, E], |C| = |E|, of every order up to min(M, N) is invertible: the generator matrix
[I; B] is then maximum distance separable. Checking order M alone would not do, since a missing
coded model leaves a smaller square to solve with. Order 1 says that no beta is 0.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from coin_hf.erasure.betas import Rows, check_betas

SINGULAR = 1e-6
"""A part whose smallest singular value lies below is taken for singular: betas themselves are
known to 1e-6 (what a row's sum may be off), so it cannot be told from one that is."""
BAD = 1000.0
"""Worst amplification from which a code draws a warning: float32 then keeps four digits."""


def check_code(rows: Rows) -> None:
    """Check that coding weights form a code, whatever is missing.

    Args:
        rows: Coding weights, shape (M, N).

    Raises:
        ValueError: If a row is not valid by itself, or a pattern of erasures could not be decoded,
            which is then named.
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
    """Enumerate the square parts of one order of an (M, N) matrix, in blocks.

    Args:
        coded: M.
        experts: N.
        order: k <= min(M, N).

    Yields:
        Row numbers and column numbers, each of shape (parts, k); one block for each set of rows.
    """
    columns = np.array(list(combinations(range(experts), order)), dtype=np.intp)
    for rows in combinations(range(coded), order):
        yield np.tile(np.array(rows, dtype=np.intp), (len(columns), 1)), columns


def smallest_singular_values(
    betas: NDArray[np.float64], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return sigma_min of many square parts at once.

    Args:
        betas: Shape (M, N).
        rows: Row numbers, shape (parts, k).
        columns: Column numbers, shape (parts, k).

    Returns:
        Shape (parts,).
    """
    parts = betas[rows[:, :, None], columns[:, None, :]]  # (parts, k, k)
    return np.asarray(np.linalg.svd(parts, compute_uv=False)[:, -1], dtype=np.float64)


def amplification(rows: Rows, missing: Sequence[int], coded: Sequence[int]) -> float:
    """Return the largest factor from the coded answers' error to the decoded answers'.

        ||fhat_E - f_E|| <= amplification * ||f_C - B[C, :] f||,
        amplification = sigma_max(B[C, E]^+) = 1 / sigma_min(B[C, E])

    Args:
        rows: Coding weights B, shape (M, N), a code.
        missing: The missing experts E.
        coded: The coded models C that answer, at least as many.

    Returns:
        The factor, a Euclidean norm over the missing experts; 1 / beta_i for one of each.
    """
    part = np.array([[rows[c][i] for i in missing] for c in coded])
    return float(1 / np.linalg.svd(part, compute_uv=False)[-1])


@lru_cache(maxsize=64)
def worst_amplification(rows: Rows) -> float:
    """Return the largest amplification over all ways to lose at most M of the N + M networks.

    It is reached where just as many coded models answer as experts are missing: one more answer
    never lowers sigma_min.

    Args:
        rows: Coding weights, shape (M, N).

    Returns:
        The maximum of 1 / sigma_min over every square part of every order; infinite if one is
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
        The coded models and the missing experts of the most singular part of the smallest order
        that has one; None if every part of every order from 2 on is invertible.
    """
    for value, part in _least_by_order(rows):
        if len(part[0]) > 1 and value < SINGULAR:
            return part
    return None


def _least_by_order(
    rows: Rows,
) -> Iterator[tuple[float, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """For each order yield the least sigma_min and the part that has it."""
    betas = np.array(rows)
    coded, experts = betas.shape
    for order in range(1, min(coded, experts) + 1):
        found = []
        for r, c in square_parts(coded, experts, order):
            values = smallest_singular_values(betas, r, c)
            k = int(values.argmin())
            found.append((float(values[k]), (tuple(r[k].tolist()), tuple(c[k].tolist()))))
        yield min(found)

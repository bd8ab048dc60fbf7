"""Coding weights: their forms and their validation."""

import math
from collections.abc import Sequence
from typing import TypeAlias

Rows: TypeAlias = tuple[tuple[float, ...], ...]
"""Coding weights of M coded models for N experts, shape (M, N)."""
Betas: TypeAlias = Sequence[float] | Sequence[Sequence[float]]
"""Coding weights as the user writes them: shape (N,) for one coded model, (M, N) for several."""


def rows_of(betas: Betas) -> Rows:
    """Return coding weights as a matrix.

    Args:
        betas: Shape (N,) or (M, N).

    Returns:
        Shape (M, N); M = 1 for a flat list.

    Raises:
        ValueError: If numbers and rows are mixed.

    Example:
        >>> rows_of([0.5, 0.5])
        ((0.5, 0.5),)
    """
    nested = [isinstance(row, Sequence) for row in betas]
    if nested and all(nested):
        return tuple(tuple(float(beta) for beta in row) for row in betas)  # type: ignore[union-attr]  # each is a row
    if any(nested):
        raise ValueError(
            f"betas mixes numbers and rows ({list(betas)}): give N numbers for one coded model, or "
            "one row of N numbers for each coded model"
        )
    return (tuple(float(beta) for beta in betas),)  # type: ignore[arg-type]  # each is a number


def written(rows: Rows) -> list[float] | list[list[float]]:
    """Return coding weights as the user writes them: a flat list for one coded model.

    Args:
        rows: Shape (M, N).

    Returns:
        Plain lists, the inverse of `rows_of`.
    """
    return list(rows[0]) if len(rows) == 1 else [list(row) for row in rows]


ROUNDED = 1e-3
"""Largest distance of a sum from 1 that is taken for rounding, as of 0.333, 0.333, 0.333."""
EXACT = 1e-6
"""Largest distance of a sum from 1 that needs no correction."""


def normalised(betas: Betas) -> Betas | None:
    """Divide rows of coding weights that sum to 1 but for rounding by their sums.

    Args:
        betas: Coding weights, shape (N,) or (M, N).

    Returns:
        The weights, each rounded row divided by its sum; None where no row needs it.
    """
    rows = rows_of(betas)
    sums = [math.fsum(row) for row in rows]
    if not any(EXACT < abs(total - 1) <= ROUNDED for total in sums):
        return None
    return written(
        tuple(
            tuple(beta / total for beta in row) if EXACT < abs(total - 1) <= ROUNDED else row
            for row, total in zip(rows, sums, strict=True)
        )
    )


def check_betas(betas: Betas, experts: int) -> None:
    """Check each row of coding weights against the number of experts.

    `coin_hf.erasure.amplification.check_code` checks whether several rows form a code.

    Args:
        betas: Coding weights, shape (N,) or (M, N).
        experts: N.

    Raises:
        ValueError: If a row does not have N values, a value is not positive, or a row does not
            sum to 1.
    """
    rows = rows_of(betas)
    for number, row in enumerate(rows):
        _check_row("betas" if len(rows) == 1 else f"row {number} of betas", row, experts)


def _check_row(name: str, betas: Sequence[float], experts: int) -> None:
    shown = ", ".join(f"{beta:.10g}" for beta in betas)
    if len(betas) != experts:
        raise ValueError(
            f"{name} has {len(betas)} values ({shown}) for {experts} experts: give one for each"
        )
    if not all(math.isfinite(beta) and beta > 0 for beta in betas):
        raise ValueError(f"{name} must all be positive, got {shown}")
    if abs(math.fsum(betas) - 1) > EXACT:
        raise ValueError(f"{name} must sum to 1, but {shown} sum to {math.fsum(betas):.10g}")

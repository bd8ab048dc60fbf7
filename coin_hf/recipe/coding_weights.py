"""The betas of a recipe, before they are checked."""

import warnings
from typing import Any

from coin_hf.erasure.betas import normalised
from coin_hf.recipe.blocks import shape_of


def without_rounding(betas: Any) -> Any:
    """Normalise betas that sum to 1 but for rounding, with a warning; leave all others.

    Args:
        betas: What a recipe gives.

    Returns:
        The same, or betas that sum to 1 exactly.
    """
    rows = betas if shape_of(betas) == "rows" else [betas]
    try:
        if any(isinstance(beta, bool) for row in rows for beta in row):
            return betas
        exact = normalised(betas)
    except (TypeError, ValueError, OverflowError):  # said where their form is checked
        return betas
    if exact is None:
        return betas
    warnings.warn(
        f"betas {list(betas)} sum to 1 but for rounding, and are divided by their sums: {exact}",
        stacklevel=8,
    )
    return exact

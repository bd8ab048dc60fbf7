"""Choose the sets of missing experts on which a code is measured."""

from itertools import chain, combinations

import numpy as np

LIMIT = 256
"""Most patterns to measure; of more, a random sample is taken."""


def erasure_patterns(
    experts: int, most: int, *, limit: int = LIMIT, seed: int = 0
) -> tuple[list[tuple[int, ...]], int]:
    """List the sets of missing experts, single ones first.

    Args:
        experts: N.
        most: Most experts missing at once: M.
        limit: Most patterns to return; all single ones are always included.
        seed: Seed of the draw among the others if there are more.

    Returns:
        The patterns, each ascending, and the total number of patterns.

    Example:
        >>> erasure_patterns(3, 2)
        ([(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], 6)
    """
    singles = [(i,) for i in range(experts)]
    sizes = range(2, min(most, experts) + 1)
    others = list(chain.from_iterable(combinations(range(experts), size) for size in sizes))
    total = len(singles) + len(others)
    if total > limit:
        room = max(limit - experts, 0)
        drawn = np.random.default_rng(seed).choice(len(others), room, replace=False)
        others = [others[k] for k in sorted(drawn.tolist())]
    return [*singles, *others], total

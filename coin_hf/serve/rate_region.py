"""The service-rate region of coded servers: which mixes of queries they can answer at all."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog


def rate_region(n: int, m: int, directions: Sequence[Sequence[float]]) -> list[float]:
    """Return how many queries a second coded servers of rate 1 can answer, by mix of queries.

    A query for expert i takes its own server, or the N - 1 others and any coded one. The largest s
    such that rates s d_i of queries can be served solves a linear programme.

    Args:
        n: N.
        m: M.
        directions: Mixes d, each of shape (N,), not negative.

    Returns:
        s for each mix.
    """
    found = []
    for mix in directions:
        # Variables: s, direct rates a_i, decoded rates b_ic.
        size = 1 + n + n * m
        rates = np.zeros((n, size))
        servers = np.zeros((n + m, size))
        for i in range(n):
            rates[i, 0] = mix[i]
            rates[i, 1 + i] = -1
            servers[i, 1 + i] = 1
            for c in range(m):
                column = 1 + n + i * m + c
                rates[i, column] = -1
                servers[n + c, column] = 1
                for j in range(n):
                    servers[j, column] = float(j != i)
        cost = np.zeros(size)
        cost[0] = -1
        limits = np.concatenate([np.zeros(n), np.ones(n + m)])
        solved = linprog(cost, np.concatenate([rates, servers]), limits)
        found.append(float(solved.x[0]))
    return found

"""Choose the rows of a map's input that its regression sees.

A map of n inputs is determined by a small multiple of n rows. Where its input has far more, as a
convolution's has on a large image, each sample gives as many of its rows as the multiple needs,
evenly spaced from a random start. The start depends on the sample and the map alone, so that the
rows are the same for any number of processes and any size of chunks.
"""

from math import ceil

import torch
from torch import Tensor

ROWS = 16
"""Rows to fit per input of a map."""


def rows_per_sample(inputs: int, samples: int, multiple: float) -> int:
    """Return the number of rows that each sample gives.

    Args:
        inputs: Inputs of the map, n.
        samples: Number of samples to fit.
        multiple: Rows wanted per input.

    Returns:
        At least 1.
    """
    return max(1, ceil(multiple * inputs / samples))


def starts(samples: int, seed: int) -> Tensor:
    """Draw each sample's random start.

    Args:
        samples: Number of samples.
        seed: The seed, another one for each map.

    Returns:
        Shape (samples,), float64, in [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, generator=generator, dtype=torch.float64)


def choose(rows: int, start: Tensor, wanted: int, real: Tensor | None = None) -> Tensor | None:
    """Choose rows of a batch, those of a sample evenly spaced.

    Of a sample's n rows those at floor((k + u) n / q) are chosen, k = 0 ... q - 1, u its start.

    Args:
        rows: Rows of the whole batch, sample by sample.
        start: Each sample's start, shape (B,).
        wanted: q, rows per sample; all of a sample that has no more.
        real: Which rows may be chosen, booleans (rows,); all by default.

    Returns:
        The numbers of the chosen rows, ascending; None if all are chosen.
    """
    count = len(start)
    if real is None:
        if wanted * count >= rows:
            return None
        each = torch.full((count,), rows // count)
    else:
        real = real.cpu()
        each = real.view(count, -1).sum(1)
    taken = each.clamp(max=wanted)
    sample = torch.arange(count).repeat_interleave(taken)
    within = torch.arange(len(sample)) - (taken.cumsum(0) - taken)[sample]
    picked = ((within + start[sample]) * (each / taken)[sample]).long()
    picked = torch.minimum(picked, each[sample] - 1) + (each.cumsum(0) - each)[sample]
    return picked if real is None else real.nonzero().squeeze(1)[picked]

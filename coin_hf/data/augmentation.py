"""Unlabelled augmentation: the experts' own outputs are the targets."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Transform = Literal["shift", "flip", "mixup"]

SHIFT = 0.125
"""Largest `shift`, as a share of the image's side."""


def enlarge(
    inputs: Tensor, *, copies: int, transforms: Sequence[Transform], seed: int
) -> Iterator[Tensor]:
    """Yield augmented copies of all samples, one at a time.

    Each transform is drawn independently for each sample and copy, and applied in this order:

    - `shift`: translate by whole pixels, up to 1/8 of each side, with edge padding.
    - `flip`: mirror left and right, with probability 1/2.
    - `mixup`: with probability 1/2, a x + (1 - a) x', a uniform in [0, 1], x' a random sample of
      the same copy.

    Source of `mixup`: arXiv:1710.09412, eq. (1), here without labels and with a uniform weight.

    Args:
        inputs: P samples, shape (P, C, H, W).
        copies: Number of copies.
        transforms: The transforms to apply.
        seed: Seed of all draws; copy c depends only on it and c. No other random state is used.

    Yields:
        A copy with the shape, dtype and sample order of `inputs`.

    Example:
        >>> [copy] = enlarge(torch.zeros(3, 1, 8, 8), copies=1, transforms=["shift"], seed=0)
        >>> copy.shape
        torch.Size([3, 1, 8, 8])
    """
    for number in range(copies):
        draw = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        copy = inputs
        if "shift" in transforms:
            copy = _shift(copy, draw)
        if "flip" in transforms:
            copy = torch.where(_half(copy, draw), copy.flip(-1), copy)
        if "mixup" in transforms:
            copy = _mixup(copy, draw)
        yield copy


def _shift(inputs: Tensor, draw: torch.Generator) -> Tensor:
    places = []
    for side in inputs.shape[-2:]:
        most = int(SHIFT * side)
        by = torch.randint(-most, most + 1, (len(inputs), 1), generator=draw)
        places.append((torch.arange(side) + by).clamp(0, side - 1).to(inputs.device))
    rows, columns = places
    sample = torch.arange(len(inputs), device=inputs.device)[:, None, None]
    moved = inputs.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]]  # (P, H, W, C)
    return moved.movedim(-1, 1).contiguous()


def _mixup(inputs: Tensor, draw: torch.Generator) -> Tensor:
    partners = torch.randperm(len(inputs), generator=draw).to(inputs.device)
    share = torch.rand(len(inputs), 1, 1, 1, generator=draw).to(inputs)
    mixed = share * inputs + (1 - share) * inputs[partners]
    return torch.where(_half(inputs, draw), mixed, inputs)


def _half(inputs: Tensor, draw: torch.Generator) -> Tensor:
    """Select each sample with probability 1/2."""
    return (torch.rand(len(inputs), 1, 1, 1, generator=draw) < 0.5).to(inputs.device)

"""More inputs from few, without labels: experts answer any input, so it may be changed at will."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Transform = Literal["shift", "flip", "mixup"]

SHIFT = 0.125
"""How far `shift` moves an image at most, as a share of its side."""


def enlarge(
    inputs: Tensor, *, copies: int, transforms: Sequence[Transform], seed: int
) -> Iterator[Tensor]:
    """Make changed copies of all samples, one after the other, so that none but one is held.

    Each transform is drawn anew for each sample and copy, and they are applied in this order:

    - `shift`: move by whole pixels, up to 1/8 of each side; what comes in repeats the edge.
    - `flip`: mirror left and right, in half of the cases.
    - `mixup`: in half of the cases a x + (1 - a) x', a uniform in [0, 1], x' any of the copies.

    Source of `mixup`: arXiv:1710.09412, eq. (1), here without labels and with a uniform weight.

    Args:
        inputs: P samples, shape (P, C, H, W).
        copies: How many copies.
        transforms: Which transforms.
        seed: Of all draws; copy c depends on it and c alone. No other random state is used.

    Yields:
        A copy, shape and dtype of `inputs`: sample by sample in the same order.

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
    """Draw about half of the samples."""
    return (torch.rand(len(inputs), 1, 1, 1, generator=draw) < 0.5).to(inputs.device)

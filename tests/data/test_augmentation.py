"""Changed copies of samples: each transform by hand, seeded, and nothing else's random state."""

import pytest
import torch
from torch import Tensor

from coin_hf.data.augmentation import Transform, enlarge


def images(count: int = 64, height: int = 16, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator)


def copies(x: Tensor, *transforms: Transform, seed: int = 0, count: int = 2) -> list[Tensor]:
    return list(enlarge(x, copies=count, transforms=transforms, seed=seed))


def test_shift_moves_and_repeats_the_edge() -> None:
    x = images()
    found = copies(x, "shift", count=1)[0]
    moves = []
    for before, after in zip(x, found, strict=True):
        padded = torch.nn.functional.pad(before[None], (3, 3, 2, 2), mode="replicate")[0]
        fits = [
            (dy, dx)
            for dy in range(5)
            for dx in range(7)
            if torch.equal(padded[:, dy : dy + 16, dx : dx + 24], after)
        ]
        assert len(fits) == 1
        moves += fits
    assert {dy for dy, _ in moves} == set(range(5))  # up to an eighth of each side, both ways
    assert {dx for _, dx in moves} == set(range(7))


def test_flip_mirrors_about_half() -> None:
    x = images()
    found = copies(x, "flip", count=1)[0]
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(found, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, x, strict=True)]
    assert all(f != s for f, s in zip(flipped, same, strict=True))
    assert 16 < sum(flipped) < 48


def test_mixup_is_on_the_line_between_two_samples() -> None:
    x = images(12)
    found = copies(x, "mixup", count=1)[0]
    mixed = 0
    for i, after in enumerate(found):
        if torch.equal(after, x[i]):
            continue
        mixed += 1
        fits = []
        for j in range(12):
            line = x[j] - x[i]
            share = float((line * (after - x[i])).sum() / line.square().sum()) if j != i else 0.0
            fits.append(0 <= share <= 1 and torch.allclose(x[i] + share * line, after, atol=1e-5))
        assert sum(fits) == 1
    assert 0 < mixed < 12


def test_copies_differ_and_are_the_same_again() -> None:
    x = images(8)
    state = torch.random.get_rng_state()
    first, again = copies(x, "shift", "mixup"), copies(x, "shift", "mixup")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)
    assert torch.equal(first[0], copies(x, "shift", "mixup", count=1)[0])
    assert not torch.equal(first[0], copies(x, "shift", "mixup", seed=1)[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("transform", ["shift", "flip", "mixup"])
def test_the_input_stays_as_it_was(transform: Transform) -> None:
    x = images(4)
    before = x.clone()
    (found,) = copies(x.double(), transform, count=1)
    assert torch.equal(x, before)
    assert found.dtype == torch.float64
    assert found.shape == x.shape

"""A coded model that answers alone: for whom, which one, and never half."""

from itertools import product

import pytest
import torch

from coin_hf.erasure.alone import closest_coded, decode_or_alone, ways
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import LabelSets

SETS = LabelSets(rows=((0, 1), (1, 2), (3,), (2, 0)), count=4)
"""Experts 0, 1 and 3 share labels in pairs; expert 2 shares none."""


def subsets(count: int) -> list[tuple[int, ...]]:
    return [
        tuple(i for i, there in enumerate(bits) if there)
        for bits in product((False, True), repeat=count)
    ]


@pytest.mark.parametrize("sets", [None, SETS])
@pytest.mark.parametrize("m", [1, 2])
def test_every_pattern_is_answered_by_decoding_or_wholly_alone(
    sets: LabelSets | None, m: int
) -> None:
    code = ErasureCode(ErasureCode.design(4, m).betas, labels=sets)
    f = list(torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(0)).double())
    if sets is not None:
        for logits, own in zip(f, sets.rows, strict=True):
            logits[:, [k for k in range(4) if k not in own]] = 0
    exact = code.encode(f)
    counts = dict.fromkeys(("expert", "decoded", "alone"), 0)
    for missing, there in product(subsets(4), subsets(m)):
        if missing and not there:
            continue
        coded = {c: exact[c] for c in there}
        rest = {i: f[i] for i in range(4) if i not in missing}
        found = decode_or_alone(code, rest, coded)
        assert sorted(found) == list(missing)
        for i, way in enumerate(ways(code, missing, there)):
            counts[way] += 1
            if i not in missing:
                assert way == "expert"
                continue
            # By hand: no label of it may be asked of more missing experts than coded models.
            owners = [
                [j for j in missing if sets is None or k in sets.rows[j]]
                for k in range(4)
                if sets is None or k in sets.rows[i]
            ]
            assert way == ("decoded" if all(len(o) <= len(there) for o in owners) else "alone")
            if way == "decoded":
                torch.testing.assert_close(found[i], f[i], rtol=0, atol=1e-9)
            else:
                most = max(there, key=lambda c: code.rows[c][i])
                assert torch.equal(found[i], exact[most])
    assert all(counts.values()), "a case of each"


def test_the_closest_is_the_one_of_largest_beta_and_the_first_of_equal_ones() -> None:
    rows = ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25))
    assert [closest_coded(rows, i, (1, 0)) for i in range(3)] == [0, 1, 0]
    assert closest_coded(rows, 0, (1,)) == 1


def test_what_is_no_answer_is_refused() -> None:
    code = ErasureCode([0.5, 0.5])
    answer = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"cannot decode experts \[0, 1\]"):
        decode_or_alone(code, {}, {})
    with pytest.raises(ValueError, match="there is no coded model 3"):
        decode_or_alone(code, {}, {3: answer})
    three = ErasureCode([0.25, 0.25, 0.5])
    with pytest.raises(ValueError, match=r"the answer of expert 0 has shape \(2, 4\)"):
        decode_or_alone(three, {0: torch.zeros(2, 4)}, {0: answer})

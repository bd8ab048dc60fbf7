"""Decoding label by label, where experts have label sets of their own."""

from itertools import chain, combinations

import pytest
import torch
from torch import Tensor

from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import LabelSets, predicted

SETS = LabelSets(rows=((0, 1, 2), (4, 3), (2, 5, 3)), count=7)  # row 6 is nobody's


def outputs(sets: LabelSets = SETS, batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for own in sets.rows:
        logits = torch.zeros(batch, sets.count, dtype=torch.float64)
        logits[:, list(own)] = torch.randn(batch, len(own), generator=generator).double()
        found.append(logits)
    return found


def by_label(
    code: ErasureCode, sets: LabelSets, there: dict[int, Tensor], coded: dict[int, Tensor]
) -> dict[int, Tensor]:
    """Solve each label by itself, by least squares over the experts that have it."""
    lost = [i for i in range(len(sets.rows)) if i not in there]
    found = {i: torch.zeros_like(next(iter(coded.values()))) for i in lost}
    for row in range(sets.count):
        unknown = [i for i in lost if row in sets.rows[i]]
        if not unknown:
            continue
        matrix = torch.tensor(
            [[code.rows[c][i] for i in unknown] for c in coded], dtype=torch.float64
        )
        known = [i for i in there if row in sets.rows[i]]
        right = torch.stack(
            [f[:, row] - sum(code.rows[c][i] * there[i][:, row] for i in known) for c, f in
             coded.items()]
        )  # fmt: skip
        solved = torch.linalg.lstsq(matrix, right).solution
        for i, answer in zip(unknown, solved, strict=True):
            found[i][:, row] = answer
    return found


def subsets(n: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(n), size) for size in range(1, n + 1)))


@pytest.mark.parametrize("rows", [[0.2, 0.3, 0.5], [[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]])
def test_every_pattern_that_can_be_decoded_is_solved_label_by_label(rows: list[float]) -> None:
    code, exact = ErasureCode(rows, labels=SETS), outputs()
    noise = torch.Generator().manual_seed(1)
    for coded_exact in (True, False):
        coded = {
            c: f if coded_exact else f + 0.1 * torch.randn(f.shape, generator=noise).double()
            for c, f in code.encode(exact).items()
        }
        decodable = 0
        for lost in subsets(3):
            there = {i: f for i, f in enumerate(exact) if i not in lost}
            crowded = [
                owners for owners in SETS.groups if len(set(owners) & set(lost)) > len(coded)
            ]
            if crowded:
                with pytest.raises(ValueError, match="of those that share a label"):
                    code.decode(there, coded)
                continue
            decodable += 1
            found = code.decode(there, coded)
            assert list(found) == list(lost)
            for i, expected in by_label(code, SETS, there, coded).items():
                torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-12)
                if coded_exact:
                    torch.testing.assert_close(found[i], exact[i], rtol=0, atol=1e-12)
        # 0 and 1 share no label: with one coded model both may be missing.
        assert decodable == (4 if len(code.rows) == 1 else 7)


def test_one_expert_is_decoded_where_others_cannot_be() -> None:
    sets = LabelSets(rows=((0, 1, 2), (0, 3), (1, 3), (2, 3)), count=4)
    code = ErasureCode(ErasureCode.design(4, 2).rows, labels=sets)
    exact = outputs(sets)
    coded = code.encode(exact)
    with pytest.raises(ValueError, match=r"cannot decode experts \[1, 2, 3\]"):
        code.decode({}, coded)
    found = code.decode({}, coded, only=0)
    assert list(found) == [0]
    torch.testing.assert_close(found[0], exact[0], rtol=0, atol=1e-10)


def test_who_is_needed() -> None:
    assert SETS.groups == {(0,): (0, 1), (0, 2): (2,), (1, 2): (3,), (1,): (4,), (2,): (5,)}
    assert [SETS.sharing(i) for i in range(3)] == [(2,), (2,), (0, 1)]
    assert LabelSets(rows=((0,), (1,)), count=2).sharing(0) == ()


def test_an_experts_class_is_one_of_its_own() -> None:
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 8, 4, 5, 6]])
    assert predicted(SETS, 0, logits).tolist() == [0, 2]
    assert predicted(SETS, 1, logits).tolist() == [4, 3]
    assert predicted(None, 1, logits).tolist() == [0, 3]


def test_experts_with_all_labels_are_decoded_as_without_sets() -> None:
    every = LabelSets(rows=(tuple(range(5)),) * 3, count=5)
    exact = [torch.randn(4, 5) for _ in range(3)]
    plain, code = ErasureCode([0.2, 0.3, 0.5]), ErasureCode([0.2, 0.3, 0.5], labels=every)
    coded = plain.encode(exact)
    there = {0: exact[0], 2: exact[2]}
    assert torch.equal(code.decode(there, coded)[1], plain.decode(there, coded)[1])


def test_bad_label_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="label sets of 2 experts, got 3"):
        ErasureCode([0.5, 0.5], labels=SETS)
    for rows in ((0, 0), (0, 3)):
        with pytest.raises(ValueError, match="expert 1 must hold different rows of 0 to 2"):
            ErasureCode([0.5, 0.5], labels=LabelSets(rows=((0,), rows), count=3))

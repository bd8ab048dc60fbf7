"""Codes for any number of experts and erasures."""

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from coin_hf.erasure.amplification import singular_part, worst_amplification
from coin_hf.erasure.betas import check_betas, rows_of, written
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.design import design, vandermonde
from coin_hf.erasure.patterns import erasure_patterns

SIZES = [(n, m) for n in range(2, 9) for m in range(1, 4)]


def all_patterns(n: int, m: int) -> Iterator[tuple[list[int], list[int]]]:
    """Every set of missing experts with every set of coded models that may replace them."""
    for missing in range(1, min(n, m) + 1):
        for experts in itertools.combinations(range(n), missing):
            for there in range(missing, m + 1):
                for coded in itertools.combinations(range(m), there):
                    yield list(experts), list(coded)


def determinant(matrix: list[list[float]]) -> float:
    """Leibniz's formula: the sum over all permutations."""
    size = len(matrix)
    total = 0.0
    for order in itertools.permutations(range(size)):
        term = (-1.0) ** sum(order[a] > order[b] for a in range(size) for b in range(a + 1, size))
        for row, column in enumerate(order):
            term *= matrix[row][column]
        total += term
    return total


def largest_growth(part: Tensor) -> float:
    """max ||x|| / ||A x|| of a matrix with one or two columns, by trying directions."""
    if part.shape[1] == 1:
        return 1 / part.norm().item()
    angles = torch.linspace(0, torch.pi, 200_001, dtype=torch.float64)
    return 1 / (part @ torch.stack([angles.cos(), angles.sin()])).norm(dim=0).min().item()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_every_pattern_decodes(n: int, m: int) -> None:
    code = ErasureCode.design(n, m)
    generator = torch.Generator().manual_seed(10 * n + m)
    wide = list(torch.randn(n, 3, 5, generator=generator, dtype=torch.float64))
    narrow = [f.float() for f in wide]
    seen = 0
    for missing, there in all_patterns(n, m):
        for outputs, tolerance in ((wide, 1e-9), (narrow, 1e-4)):
            coded = code.encode(outputs)
            answers = code.decode(
                {i: f for i, f in enumerate(outputs) if i not in missing},
                {c: coded[c] for c in there},
            )
            assert sorted(answers) == missing
            for i in missing:
                assert answers[i].dtype == outputs[i].dtype
                torch.testing.assert_close(answers[i], outputs[i], rtol=0, atol=tolerance)
        seen += 1
    assert seen == len(list(all_patterns(n, m)))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_the_design_is_a_code_and_no_worse_than_vandermonde(n: int, m: int) -> None:
    rows = design(n, m)
    check_betas(rows, n)
    for order in range(1, min(n, m) + 1):
        for coded in itertools.combinations(range(m), order):
            for experts in itertools.combinations(range(n), order):
                part = [[rows[c][i] for i in experts] for c in coded]
                assert abs(determinant(part)) > 1e-8
    assert worst_amplification(rows) <= worst_amplification(vandermonde(n, m))
    integers = [[float(x) ** power for x in range(1, n + 1)] for power in range(m)]
    plain = tuple(tuple(x / sum(row) for x in row) for row in integers)
    assert worst_amplification(vandermonde(n, m)) <= worst_amplification(plain)


@pytest.mark.slow
def test_the_design_beats_vandermonde_clearly() -> None:
    for n, m, factor in ((3, 2, 1.6), (4, 2, 1.8), (8, 2, 2.2), (4, 3, 4), (8, 3, 6)):
        ratio = worst_amplification(vandermonde(n, m)) / worst_amplification(design(n, m))
        assert ratio > factor, (n, m, ratio)


@pytest.mark.slow
def test_known_designs() -> None:
    assert design(4, 1) == ((0.25, 0.25, 0.25, 0.25),)
    # [[a, 1-a], [1-a, a]] amplifies by max(1 / (2a - 1), 1 / (1 - a)), least at a = 2/3.
    assert design(2, 2) == ((0.6667, 0.3333), (0.3333, 0.6667))
    assert worst_amplification(((2 / 3, 1 / 3), (1 / 3, 2 / 3))) == pytest.approx(3)
    design.cache_clear()
    assert design(2, 2) == ((0.6667, 0.3333), (0.3333, 0.6667))


@pytest.mark.slow
def test_amplification_is_the_largest_growth_of_an_error() -> None:
    code = ErasureCode.design(4, 3)
    matrix = torch.tensor(code.rows, dtype=torch.float64)
    worst = 0.0
    for missing, there in all_patterns(4, 2):
        growth = largest_growth(matrix[there][:, missing])
        assert code.amplification(missing, there) == pytest.approx(growth, rel=1e-6)
        worst = max(worst, growth)
    assert worst <= code.worst_amplification()
    assert code.amplification(2, [1]) == pytest.approx(1 / code.rows[1][2])
    assert code.amplification([]) == 0
    two = ErasureCode.design(4, 2)
    growths = [
        largest_growth(torch.tensor(two.rows, dtype=torch.float64)[there][:, missing])
        for missing, there in all_patterns(4, 2)
    ]
    assert two.worst_amplification() == pytest.approx(max(growths), rel=1e-6)


def test_an_error_never_grows_beyond_the_amplification_and_reaches_it() -> None:
    code = ErasureCode.design(3, 2)
    matrix = torch.tensor(code.rows, dtype=torch.float64)
    f = list(torch.randn(3, 1, 1, dtype=torch.float64))
    coded = code.encode(f)
    for missing in ([0, 1], [0, 2], [1, 2]):
        bound = code.amplification(missing)
        u = torch.linalg.svd(matrix[:, missing])[0][:, -1]
        for error in (u, torch.tensor([0.6, 0.8]).double()):
            there = {i: f[i] for i in range(3) if i not in missing}
            answers = code.decode(there, {c: coded[c] + error[c] for c in range(2)})
            off = torch.stack([answers[i] - f[i] for i in missing]).norm().item()
            assert off <= bound * (1 + 1e-9)
            if error is u:
                assert off == pytest.approx(bound)


def test_one_coded_model_decodes_as_the_paper_writes_it() -> None:
    generator = torch.Generator().manual_seed(0)
    f = list(torch.randn(2, 64, 10, generator=generator))
    c = torch.randn(64, 10, generator=generator)
    for betas in ([0.5, 0.5], [0.3, 0.7]):
        code = ErasureCode(betas)
        assert torch.equal(code.encode(f)[0], betas[0] * f[0] + betas[1] * f[1])
        assert torch.equal(code.decode({0: f[0]}, {0: c})[1], (c - betas[0] * f[0]) / betas[1])
        assert torch.equal(code.decode({1: f[1]}, {0: c})[0], (c - betas[1] * f[1]) / betas[0])


def test_more_answers_than_needed_are_weighted_by_the_coding_losses() -> None:
    rows = [[0.6, 0.4], [0.3, 0.7]]
    losses = [4.0, 1.0]
    f0, c0, c1 = 1.5, 0.7, -0.4
    rests = [c0 - 0.6 * f0, c1 - 0.3 * f0]

    def objective(x: float) -> float:
        return (rests[0] - 0.4 * x) ** 2 / 4 + (rests[1] - 0.7 * x) ** 2 / 1

    grid = [k / 10_000 - 3 for k in range(60_001)]
    best = min(grid, key=objective)
    code = ErasureCode(rows, losses=losses)
    tensor = torch.tensor([[f0]], dtype=torch.float64)
    coded = {0: torch.tensor([[c0]]).double(), 1: torch.tensor([[c1]]).double()}
    assert code.decode({0: tensor}, coded)[1].item() == pytest.approx(best, abs=1e-4)
    plain = ErasureCode(rows).decode({0: tensor}, coded)[1].item()
    assert abs(plain - best) > 0.01


def test_a_perfect_coded_model_decides_alone() -> None:
    code = ErasureCode([[0.6, 0.4], [0.3, 0.7]], losses=[0.0, 2.0])
    f = list(torch.randn(2, 4, 3, dtype=torch.float64))
    coded = code.encode(f)
    answers = code.decode({0: f[0]}, {0: coded[0], 1: coded[1] + 5})
    torch.testing.assert_close(answers[1], f[1], rtol=0, atol=1e-6)
    both = ErasureCode([[0.6, 0.4], [0.3, 0.7]], losses=[0.0, 0.0])
    torch.testing.assert_close(both.decode({0: f[0]}, coded)[1], f[1], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_weights_do_not_change_exact_answers() -> None:
    code = ErasureCode(design(5, 3), losses=[1.0, 100.0, 1e-4])
    f = list(torch.randn(5, 4, 3, dtype=torch.float64))
    coded = code.encode(f)
    for missing, there in all_patterns(5, 3):
        answers = code.decode(
            {i: f[i] for i in range(5) if i not in missing}, {c: coded[c] for c in there}
        )
        for i in missing:
            torch.testing.assert_close(answers[i], f[i], rtol=0, atol=1e-9)


def test_half_precision_is_decoded_in_single() -> None:
    code = ErasureCode.design(4, 2)
    f = [t.bfloat16() for t in torch.randn(4, 8, 10)]
    coded = {c: value.bfloat16() for c, value in code.encode(f).items()}
    answers = code.decode({0: f[0], 3: f[3]}, coded)
    wide = code.decode(
        {0: f[0].double(), 3: f[3].double()}, {c: v.double() for c, v in coded.items()}
    )
    for i in (1, 2):
        assert answers[i].dtype == torch.bfloat16
        torch.testing.assert_close(answers[i].double(), wide[i], rtol=2**-8, atol=1e-5)


def test_nothing_missing_needs_no_coded_answer() -> None:
    f = torch.zeros(1, 2)
    assert ErasureCode.design(2, 2).decode({0: f, 1: f}, {}) == {}


@pytest.mark.slow
def test_decode_compiles_whole() -> None:
    code = ErasureCode(design(4, 2), losses=[1.0, 2.0])
    f = list(torch.randn(4, 8, 10))
    coded = code.encode(f)
    decode = torch.compile(code.decode, fullgraph=True, backend="aot_eager")
    residual = torch.compile(code.residual, fullgraph=True, backend="aot_eager")
    for missing in ([1], [0, 2], [2, 3]):
        there = {i: f[i] for i in range(4) if i not in missing}
        compiled, eager = decode(there, coded), code.decode(there, coded)
        assert list(compiled) == list(eager)
        for i in missing:
            torch.testing.assert_close(compiled[i], eager[i])
    everything = dict(enumerate(f))
    torch.testing.assert_close(residual(everything, coded), code.residual(everything, coded))


def test_the_parity_residual_is_the_formula() -> None:
    code = ErasureCode([[0.6, 0.4], [0.3, 0.7]], losses=[4.0, 0.25])
    f = list(torch.randn(2, 5, 3, dtype=torch.float64))
    coded = {c: value + 0.1 * (c + 1) for c, value in code.encode(f).items()}
    expected = ((3 * 0.1**2 / 4 + 3 * 0.2**2 / 0.25) / 2) ** 0.5
    found = code.residual(dict(enumerate(f)), coded)
    torch.testing.assert_close(found, torch.full((5,), expected, dtype=torch.float64))
    alone = code.residual(dict(enumerate(f)), {1: coded[1]})
    torch.testing.assert_close(alone, torch.full((5,), (0.12 / 0.25) ** 0.5).double())
    corrupted = code.residual({0: f[0], 1: f[1] + 3}, coded)
    assert (corrupted > 3 * found).all()


@pytest.mark.parametrize(
    ("experts", "coded", "message"),
    [
        ([0, 1], [0], "cannot decode experts [2, 3] from experts [0, 1] and coded models [0]: "),
        ([0], [0, 1], "cannot decode experts [1, 2, 3] from experts [0] and coded models [0, 1]: "),
        ([0, 1, 2], [], "cannot decode experts [3] from experts [0, 1, 2] and coded models []: "),
        ([0, 1, 2, 4], [0], "there is no expert 4: they are numbered 0 to 3"),
        ([0, 1, 2], [2], "there is no coded model 2: they are numbered 0 to 1"),
    ],
)
def test_what_cannot_be_decoded_says_what_was_there(
    experts: Sequence[int], coded: Sequence[int], message: str
) -> None:
    f = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ErasureCode.design(4, 2).decode(dict.fromkeys(experts, f), dict.fromkeys(coded, f))


def test_other_mistakes_are_named() -> None:
    code = ErasureCode.design(3, 2)
    f, wider = torch.zeros(4, 2), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"expert 1 has shape \(4, 3\), expected \(4, 2\)"):
        code.decode({0: f, 1: wider}, {0: f})
    with pytest.raises(ValueError, match=r"coded model 1 has shape \(4, 3\), expected \(4, 2\)"):
        code.decode({0: f}, {0: f, 1: wider})
    with pytest.raises(ValueError, match=r"all 3 experts .*, got experts \[0\] and coded .* \[0\]"):
        code.residual({0: f}, {0: f})
    with pytest.raises(ValueError, match=r"1 coded models cannot replace experts \[0, 1\]"):
        code.amplification([0, 1], [0])
    with pytest.raises(ValueError, match="losses must be 2 finite numbers >= 0"):
        ErasureCode(design(3, 2), losses=[1.0])
    with pytest.raises(ValueError, match="at least 2 experts and 1 coded model, got 1 and 1"):
        ErasureCode.design(1, 1)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        # Order 2 of 3: with a coded model lost as well, these two rows must tell 0 and 2 apart.
        (
            [[0.25, 0.5, 0.25], [0.4, 0.2, 0.4], [0.2, 0.3, 0.5]],
            "these betas are not an erasure code: experts 0, 2 cannot be recovered from coded "
            "models 0, 1",
        ),
        ([[0.5, 0.5], [0.5, 0.5]], "experts 0, 1 cannot be recovered from coded models 0, 1"),
        ([[0.5, 0.5], [0.4, 0.5]], "row 1 of betas must sum to 1, but 0.4, 0.5 sum to 0.9"),
        ([[0.5, 0.5], [1.2, -0.2]], "row 1 of betas must all be positive, got 1.2, -0.2"),
        ([[0.5, 0.5], [1.0]], "row 1 of betas has 1 values (1) for 2 experts: give one for each"),
        ([0.5, [0.5]], "betas mixes numbers and rows"),
        ([], "an erasure code needs at least 2 experts, got 0"),
    ],
)
def test_betas_that_are_no_code_are_refused(betas: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ErasureCode(betas)


def test_every_singular_part_of_any_order_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    for experts, coded in (((0, 3), (0, 2)), ((1, 2, 4), (0, 1, 2))):
        rows = 0.2 + torch.rand(3, 5, generator=generator, dtype=torch.float64)
        last = torch.zeros(len(experts), dtype=torch.float64)
        for weight, c in zip((0.3, 0.7), coded[:-1], strict=False):
            last = last + weight * rows[c, list(experts)]
        rows[coded[-1], list(experts)] = last  # a combination of the rows before
        scaled = rows / rows.sum(1, keepdim=True)  # scaling rows keeps a part singular
        assert singular_part(tuple(map(tuple, scaled.tolist()))) == (coded, experts)


@pytest.mark.slow
def test_a_badly_conditioned_code_warns_with_its_worst_amplification() -> None:
    with pytest.warns(UserWarning, match=r"multiplies a coded model's error by up to 3\.16e\+03"):
        ErasureCode([[0.5, 0.5], [0.50031623, 0.49968377]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ErasureCode.design(8, 3)


def test_betas_as_written() -> None:
    assert rows_of([0.25, 0.75]) == ((0.25, 0.75),)
    assert rows_of([[0.25, 0.75], [0.5, 0.5]]) == ((0.25, 0.75), (0.5, 0.5))
    assert written(((0.25, 0.75),)) == [0.25, 0.75]
    assert written(((0.25, 0.75), (0.5, 0.5))) == [[0.25, 0.75], [0.5, 0.5]]
    assert ErasureCode([0.25, 0.75]).betas == (0.25, 0.75)
    assert ErasureCode.design(2, 2).betas == ErasureCode.design(2, 2).rows


def test_patterns() -> None:
    assert erasure_patterns(2, 1) == ([(0,), (1,)], 2)
    assert erasure_patterns(2, 5) == ([(0,), (1,), (0, 1)], 3)
    found, total = erasure_patterns(16, 3)
    assert total == 16 + 120 + 560
    assert len(found) == len(set(found)) == 256
    assert found[:16] == [(i,) for i in range(16)]
    assert all(len(p) > 1 and list(p) == sorted(set(p)) for p in found[16:])
    assert erasure_patterns(16, 3) == (found, total)
    assert erasure_patterns(16, 3, seed=1) != (found, total)


def test_amplification_of_weighted_decoding_is_its_matrix() -> None:
    """A coded model that is trusted more may be the one that amplifies more."""
    betas = [[0.5, 0.5], [0.3, 0.7]]
    code = ErasureCode(betas, losses=[1e-6, 1.0])
    zero = torch.zeros(1, 1, dtype=torch.float64)
    columns = []
    for c in (0, 1):  # the decoded answer where coded model c alone is off by one
        coded = {m: torch.full((1, 1), float(m == c), dtype=torch.float64) for m in (0, 1)}
        columns.append(code.decode({1: zero}, coded)[0].item())
    found = code.amplification(0)
    assert found == pytest.approx(sum(value**2 for value in columns) ** 0.5)
    assert ErasureCode(betas).amplification(0) < found <= code.worst_amplification()

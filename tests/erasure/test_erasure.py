import pytest
import reference
import torch

from coin_hf.erasure.code import ErasureCode


def random_betas(n: int, generator: torch.Generator) -> list[float]:
    weights = 0.05 + torch.rand(n, generator=generator, dtype=torch.float64)
    return (weights / weights.sum()).tolist()


@pytest.mark.parametrize("n", range(2, 7))
def test_decode_undoes_encode_for_every_erasure(n: int) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        code = ErasureCode(random_betas(n, generator))
        outputs = list(torch.randn(n, 5, 10, generator=generator, dtype=torch.float64) * 10)
        coded = code.encode(outputs)
        assert code.decode(dict(enumerate(outputs)), coded) == {}
        for missing in range(n):
            there = {i: f for i, f in enumerate(outputs) if i != missing}
            answer = code.decode(there, coded)
            assert list(answer) == [missing]
            torch.testing.assert_close(answer[missing], outputs[missing], rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", range(2, 7))
def test_encode_and_decode_are_the_formulas(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    betas = random_betas(n, generator)
    code = ErasureCode(betas)
    outputs = torch.randn(n, 4, 3, generator=generator, dtype=torch.float64)
    wrong = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    for row in range(4):
        answers = [outputs[i, row].tolist() for i in range(n)]
        coded = code.encode(list(outputs))[0][row].tolist()
        assert coded == pytest.approx(reference.encoded(answers, betas), rel=1e-12)
        for missing in range(n):
            there = {i: outputs[i] for i in range(n) if i != missing}
            answer = code.decode(there, {0: wrong})[missing][row].tolist()
            expected = reference.decoded(missing, answers, wrong[row].tolist(), betas)
            assert answer == pytest.approx(expected, rel=1e-12)


def test_an_error_of_the_coded_answer_is_amplified_by_one_over_beta() -> None:
    code = ErasureCode([0.2, 0.3, 0.5])
    outputs = list(torch.randn(3, 4, 5, dtype=torch.float64))
    coded = code.encode(outputs)[0] + 1
    for missing, factor in enumerate([5, 1 / 0.3, 2]):
        there = {i: f for i, f in enumerate(outputs) if i != missing}
        error = code.decode(there, {0: coded})[missing] - outputs[missing]
        assert code.amplification(missing) == pytest.approx(factor)
        torch.testing.assert_close(error, torch.full_like(error, factor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    code = ErasureCode([0.1, 0.6, 0.3])
    f = list(torch.randn(3, 50, 10, generator=torch.Generator().manual_seed(0)).to(dtype))
    coded = code.encode(f)
    assert torch.equal(coded[0], code.encode([x.float() for x in f])[0].to(dtype))
    for missing in range(3):
        there = {i: x for i, x in enumerate(f) if i != missing}
        wide = code.decode({i: x.float() for i, x in there.items()}, {0: coded[0].float()})
        assert torch.equal(code.decode(there, coded)[missing], wide[missing].to(dtype))


def test_the_order_in_which_answers_come_does_not_matter() -> None:
    code = ErasureCode([0.1, 0.2, 0.3, 0.4])
    f = list(torch.randn(4, 8, 10))
    coded = code.encode(f)
    one = code.decode({0: f[0], 1: f[1], 3: f[3]}, coded)[2]
    other = code.decode({3: f[3], 1: f[1], 0: f[0]}, coded)[2]
    assert torch.equal(one, other)


def test_nothing_that_is_given_changes() -> None:
    outputs = [torch.ones(2, 3), torch.full((2, 3), 2.0)]
    code = ErasureCode([0.5, 0.5])
    coded = code.encode(outputs)
    code.decode({0: outputs[0]}, coded)
    assert torch.equal(outputs[0], torch.ones(2, 3))
    assert torch.equal(outputs[1], torch.full((2, 3), 2.0))
    assert torch.equal(coded[0], torch.full((2, 3), 1.5))


def test_too_many_missing() -> None:
    code = ErasureCode([0.2, 0.3, 0.5])
    f = torch.zeros(1, 2)
    message = (
        r"cannot decode experts \[1, 2\] from experts \[0\] and coded models \[0\]: "
        "one coded model replaces one missing expert"
    )
    with pytest.raises(ValueError, match=message):
        code.decode({0: f}, {0: f})
    with pytest.raises(ValueError, match=r"cannot decode experts \[2\] .* coded models \[\]"):
        code.decode({0: f, 1: f}, {})


@pytest.mark.parametrize("number", [2, -1])
def test_an_expert_that_is_not_there(number: int) -> None:
    f = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"there is no expert {number}: they are numbered 0 to 1"):
        ErasureCode([0.5, 0.5]).decode({0: f, number: f}, {0: f})


def test_the_wrong_number_of_outputs() -> None:
    with pytest.raises(ValueError, match="expected the outputs of 2 experts, got 3"):
        ErasureCode([0.5, 0.5]).encode([torch.zeros(1, 2)] * 3)


def test_betas_are_checked() -> None:
    with pytest.raises(ValueError, match="an erasure code needs at least 2 experts, got 1"):
        ErasureCode([1.0])
    with pytest.raises(ValueError, match=r"betas must sum to 1, but 0\.5, 0\.4 sum to 0\.9"):
        ErasureCode([0.5, 0.4])
    assert repr(ErasureCode([0.25, 0.75])) == "ErasureCode([0.25, 0.75])"

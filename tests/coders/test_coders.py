import re

import pytest
import reference
import torch
from torch import Tensor, nn

from coin_hf.coders import average, average_buffers, fisher_average
from coin_hf.erasure.code import ErasureCode
from coin_hf.fisher import diagonal_fisher

Weights = dict[str, Tensor]
SHAPES = {"conv.weight": (3, 2, 2), "head.bias": (4,), "scale": ()}


class Case:
    """Random experts, Fishers over eight decades (some exactly zero) and uneven betas."""

    def __init__(self, seed: int, n: int, dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(seed)
        wide = torch.float64

        def fisher(shape: tuple[int, ...]) -> Tensor:
            decades = 8 * torch.rand(shape, generator=g, dtype=wide) - 6
            return 10**decades * (torch.rand(shape, generator=g) > 0.2)

        self.thetas = [
            {k: torch.randn(s, generator=g, dtype=wide).to(dtype) for k, s in SHAPES.items()}
            for _ in range(n)
        ]
        self.fishers = [{k: fisher(s) for k, s in SHAPES.items()} for _ in range(n)]
        weights = 0.05 + torch.rand(n, generator=g, dtype=wide)
        self.betas = (weights / weights.sum()).tolist()

    def merged(self, lam: float) -> Weights:
        return fisher_average(self.thetas, self.fishers, betas=self.betas, lam=lam)


CASES = [(seed, n) for seed in range(4) for n in range(2, 7)]
LAMS = [0.0, 1e-5, 1e-2, 1.0]


def close(one: Weights, other: Weights, tolerance: float = 1e-12) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


def equal(one: Weights, other: Weights) -> bool:
    """Equal to the last bit: -0.0 is not 0.0."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) and torch.equal(value.signbit(), other[name].signbit())
        for name, value in one.items()
    )


@pytest.mark.parametrize(("seed", "n"), CASES)
@pytest.mark.parametrize("lam", LAMS)
def test_coin_is_the_formula(seed: int, n: int, lam: float) -> None:
    case = Case(seed, n)
    close(case.merged(lam), reference.merged(case.thetas, case.fishers, case.betas, lam))


@pytest.mark.parametrize(("seed", "n"), CASES)
def test_average_is_the_weighted_mean(seed: int, n: int) -> None:
    case = Case(seed, n)
    close(average(case.thetas, betas=case.betas), reference.mean(case.thetas, case.betas))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("n", range(2, 7))
def test_identical_experts_come_back_to_the_last_bit(
    n: int, lam: float, dtype: torch.dtype
) -> None:
    case = Case(n, n, dtype)
    expert = {**case.thetas[0], "zeros": torch.tensor([0.0, -0.0, 1e-7, -6e4]).to(dtype)}
    fishers = [{**fisher, "zeros": torch.arange(4.0) * i} for i, fisher in enumerate(case.fishers)]
    assert equal(fisher_average([expert] * n, fishers, betas=case.betas, lam=lam), expert)
    assert equal(average([expert] * n, betas=case.betas), expert)


@pytest.mark.parametrize(("seed", "n"), CASES)
@pytest.mark.parametrize("lam", LAMS)
def test_equal_fishers_give_the_weighted_mean(seed: int, n: int, lam: float) -> None:
    case = Case(seed, n)
    case.fishers = case.fishers[:1] * n
    close(case.merged(lam), reference.mean(case.thetas, case.betas))


@pytest.mark.parametrize(("seed", "n"), CASES)
def test_without_any_fisher_the_weighted_mean(seed: int, n: int) -> None:
    case = Case(seed, n)
    case.fishers = [{k: torch.zeros_like(v) for k, v in f.items()} for f in case.fishers]
    close(case.merged(0.0), reference.mean(case.thetas, case.betas))


def test_where_only_some_fishers_are_zero_the_others_decide() -> None:
    thetas = [{"w": torch.tensor([1.0, 1.0, 1.0])}, {"w": torch.tensor([5.0, 5.0, 5.0])}]
    fishers = [{"w": torch.tensor([0.0, 7.0, 0.0])}, {"w": torch.tensor([3.0, 0.0, 0.0])}]
    coded = fisher_average(thetas, fishers, betas=[0.25, 0.75], lam=0.0)
    assert coded["w"].tolist() == [5.0, 1.0, 4.0]


@pytest.mark.parametrize(("seed", "n"), CASES)
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_a_common_scale_of_the_fishers_changes_nothing(seed: int, n: int, scale: float) -> None:
    case = Case(seed, n)
    before = case.merged(0.0)
    case.fishers = [{k: v * scale for k, v in f.items()} for f in case.fishers]
    close(case.merged(0.0), before)


@pytest.mark.parametrize(("seed", "n"), CASES)
@pytest.mark.parametrize("lam", LAMS)
def test_the_order_of_the_experts_changes_nothing(seed: int, n: int, lam: float) -> None:
    case = Case(seed, n)
    before = case.merged(lam)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    case.thetas = [case.thetas[i] for i in order]
    case.fishers = [case.fishers[i] for i in order]
    case.betas = [case.betas[i] for i in order]
    close(case.merged(lam), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lam", LAMS)
def test_every_value_lies_between_the_experts(lam: float, dtype: torch.dtype) -> None:
    for seed, n in CASES:
        case = Case(seed, n, dtype)
        for coded in (case.merged(lam), average(case.thetas, betas=case.betas)):
            for name, value in coded.items():
                stack = torch.stack([theta[name] for theta in case.thetas])
                assert value.dtype == dtype
                assert (stack.amin(0) <= value).all()
                assert (value <= stack.amax(0)).all()


def test_a_large_lambda_leads_to_the_weighted_mean() -> None:
    case = Case(0, 3)
    close(case.merged(1e12), reference.mean(case.thetas, case.betas), 1e-9)


def test_a_larger_fisher_pulls_harder() -> None:
    thetas = [{"w": torch.zeros(1)}, {"w": torch.ones(1)}]

    def coded(fisher: float) -> float:
        fishers = [{"w": torch.ones(1)}, {"w": torch.tensor([fisher])}]
        return fisher_average(thetas, fishers, betas=[0.5, 0.5], lam=0.01)["w"].item()

    values = [coded(fisher) for fisher in (0.0, 0.1, 1.0, 10.0, 1000.0)]
    assert values == sorted(set(values))
    assert values[2] == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    for seed, n in CASES:
        case = Case(seed, n, dtype)
        exact = reference.merged(case.thetas, case.fishers, case.betas, 1e-3)
        wide = [{k: v.float() for k, v in theta.items()} for theta in case.thetas]
        in_float32 = fisher_average(wide, case.fishers, betas=case.betas, lam=1e-3)
        for name, value in case.merged(1e-3).items():
            assert torch.equal(value, in_float32[name].to(dtype))
            half_a_unit = torch.finfo(dtype).eps / 2 * exact[name].abs()
            # float32's own error counts where the experts nearly cancel.
            assert ((value.double() - exact[name]).abs() <= 1.001 * half_a_unit + 1e-6).all()


def test_float32_keeps_float32_precision() -> None:
    for seed, n in CASES:
        case = Case(seed, n, torch.float32)
        exact = reference.merged(case.thetas, case.fishers, case.betas, 1e-3)
        coded = {name: value.double() for name, value in case.merged(1e-3).items()}
        close(coded, exact, 2e-6)


def test_the_experts_and_the_random_state_stay_as_they_were() -> None:
    case = Case(1, 3)
    before = [{k: v.clone() for k, v in d.items()} for d in case.thetas + case.fishers]
    state = torch.random.get_rng_state()
    coded = case.merged(0.1)
    average(case.thetas, betas=case.betas)
    for value in coded.values():
        value += 1
    assert all(map(equal, case.thetas + case.fishers, before))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("lam", [0.0, 0.1])
@pytest.mark.parametrize("n", range(2, 7))
def test_linear_experts_are_decoded_exactly(n: int, lam: float) -> None:
    generator = torch.Generator().manual_seed(n)
    experts = [nn.Linear(6, 4).double() for _ in range(n)]
    with torch.no_grad():
        for expert in experts:
            for parameter in expert.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    samples = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    betas = Case(n, n).betas
    coded = nn.Linear(6, 4).double()
    coded.load_state_dict(
        fisher_average(
            [dict(expert.named_parameters()) for expert in experts],
            [diagonal_fisher(expert, samples) for expert in experts],
            betas=betas,
            lam=lam,
        )
    )
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    code = ErasureCode(betas)
    with torch.no_grad():
        outputs = [expert(x) for expert in experts]
        for missing in range(n):
            there = {i: f for i, f in enumerate(outputs) if i != missing}
            answer = code.decode(there, {0: coded(x)})[missing]
            torch.testing.assert_close(answer, outputs[missing], rtol=0, atol=1e-10)


def test_floating_buffers_are_averaged_and_integer_ones_are_the_first_experts() -> None:
    first = {"running_mean": torch.tensor([0.0, 4.0]), "steps": torch.tensor(7)}
    second = {"running_mean": torch.tensor([4.0, 0.0]), "steps": torch.tensor(9)}
    coded = average_buffers([first, second], betas=[0.25, 0.75])
    assert coded["running_mean"].tolist() == [3.0, 1.0]
    assert coded["steps"].item() == 7
    coded["steps"] += 1
    assert first["steps"].item() == 7


def test_a_fisher_that_rounds_below_zero_is_zero() -> None:
    thetas = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]
    other = {"w": torch.tensor([1.0, 1.0])}
    coded, exact = (
        fisher_average(
            thetas, [{"w": torch.tensor([2.0, least])}, other], betas=[0.5, 0.5], lam=0.0
        )
        for least in (-1e-12, 0.0)
    )
    assert coded["w"].tolist() == exact["w"].tolist()
    with pytest.raises(ValueError, match="is negative or not finite in 'w'"):
        fisher_average(
            thetas, [{"w": torch.tensor([2.0, -1e-6])}, other], betas=[0.5, 0.5], lam=0.0
        )


class TestMessages:
    thetas = ({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    fishers = ({"w": torch.ones(2)}, {"w": torch.ones(2)})

    def refused(self, message: str, **changes: object) -> None:
        given = {"thetas": self.thetas, "fishers": self.fishers, "betas": [0.5, 0.5], "lam": 0.0}
        given |= changes
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            fisher_average(**given)  # type: ignore[arg-type]

    def test_lam(self) -> None:
        for lam in (-1.0, float("nan"), float("inf")):
            self.refused(f"lam must be a finite number >= 0, got {lam}", lam=lam)

    def test_betas(self) -> None:
        self.refused("betas must sum to 1, but 0.5, 0.6 sum to 1.1", betas=[0.5, 0.6])
        self.refused("betas has 1 values (1) for 2 experts: give one for each", betas=[1.0])

    def test_names(self) -> None:
        other = {"w": torch.ones(2), "v": torch.ones(2)}
        self.refused("experts 0 and 1 do not both have v", thetas=(self.thetas[0], other))

    def test_shapes(self) -> None:
        self.refused(
            "'w' has shape (2,) in expert 0 and (1, 2) in expert 1",
            thetas=(self.thetas[0], {"w": torch.ones(1, 2)}),
        )

    def test_fishers(self) -> None:
        one = self.fishers[0]
        self.refused("expected 2 Fishers, one for each expert, got 1", fishers=(one,))
        self.refused("the Fisher of expert 1 lacks 'w'", fishers=(one, {}))
        self.refused(
            "the Fisher of expert 1 has shape (3,) for 'w', expected (2,)",
            fishers=(one, {"w": torch.ones(3)}),
        )
        # 1e300 is finite, but not in the float32 of the merge.
        for bad in (-1.0, float("nan"), float("inf"), 1e300):
            self.refused(
                "the Fisher of expert 1 is negative or not finite in 'w'",
                fishers=(one, {"w": torch.tensor([1.0, bad], dtype=torch.float64)}),
            )

import re

import pytest
import reference
import torch
from torch import Tensor

from coin_hf.coders import ALPHA_CANDIDATES, average, task_arithmetic

Weights = dict[str, Tensor]


def drawn(seed: int, n: int, dtype: torch.dtype = torch.float64) -> list[Weights]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (3, 2, 2), "bias": (4,), "scale": ()}

    def weights() -> Weights:
        wide = {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in shapes.items()}
        return {name: value.to(dtype) for name, value in wide.items()}

    return [weights() for _ in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("alpha", [0.05, 0.35, 1.0])
def test_it_is_the_formula(n: int, alpha: float) -> None:
    start, *experts = drawn(n, n + 1)
    for betas in ([1 / n] * n, [2 / (n + 1)] + [1 / (n + 1)] * (n - 1)):
        coded = task_arithmetic(experts, start, betas=betas, alpha=alpha)
        expected = reference.task_vectors(experts, start, betas, alpha)
        assert coded.keys() == expected.keys()
        for name, value in coded.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


def test_equal_betas_give_the_published_sum() -> None:
    start, one, two, three = drawn(0, 4)
    coded = task_arithmetic([one, two, three], start, betas=[1 / 3] * 3, alpha=0.4)
    for name, value in coded.items():
        tasks = sum(expert[name] - start[name] for expert in (one, two, three))
        torch.testing.assert_close(value, start[name] + 0.4 * tasks)


def test_alpha_one_over_n_is_the_weighted_mean() -> None:
    start, *experts = drawn(1, 5)
    betas = [0.1, 0.2, 0.3, 0.4]
    coded = task_arithmetic(experts, start, betas=betas, alpha=0.25)
    mean = average(experts, betas=betas)
    for name, value in coded.items():
        torch.testing.assert_close(value, mean[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_keeps_the_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    start, *experts = drawn(2, 3, dtype)
    coded = task_arithmetic(experts, start, betas=[0.5, 0.5], alpha=0.3)
    exact = reference.task_vectors(experts, start, [0.5, 0.5], 0.3)
    for name, value in coded.items():
        assert value.dtype == dtype
        limit = torch.finfo(dtype).eps * exact[name].abs() + 1e-6
        assert ((value.double() - exact[name]).abs() <= limit).all()


def test_nothing_is_changed() -> None:
    given = drawn(3, 3)
    before = [{name: value.clone() for name, value in each.items()} for each in given]
    coded = task_arithmetic(given[1:], given[0], betas=[0.5, 0.5], alpha=1)
    for value in coded.values():
        value += 1
    assert all(torch.equal(a[k], b[k]) for a, b in zip(given, before, strict=True) for k in a)


def test_candidates() -> None:
    assert len(ALPHA_CANDIDATES) == 20
    assert ALPHA_CANDIDATES[:3] == (0.05, 0.1, 0.15)
    assert ALPHA_CANDIDATES[-1] == 1.0


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.01, float("nan")])
def test_alpha_outside_its_range(alpha: float) -> None:
    start, *experts = drawn(0, 3)
    with pytest.raises(ValueError, match=re.escape(f"alpha must lie in (0, 1], got {alpha}")):
        task_arithmetic(experts, start, betas=[0.5, 0.5], alpha=alpha)


def test_a_foundation_that_does_not_match() -> None:
    start, *experts = drawn(0, 3)
    less = {name: value for name, value in start.items() if name != "bias"}
    with pytest.raises(ValueError, match="the foundation and the experts do not both have bias"):
        task_arithmetic(experts, less, betas=[0.5, 0.5], alpha=1)
    other = {**start, "bias": torch.zeros(7)}
    message = re.escape("'bias' has shape (7,) in the foundation and (4,) in the experts")
    with pytest.raises(ValueError, match=message):
        task_arithmetic(experts, other, betas=[0.5, 0.5], alpha=1)

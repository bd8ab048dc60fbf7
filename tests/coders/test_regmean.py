"""RegMean against `lstsq`, and what holds whatever the Gram matrices are."""

import re

import pytest
import reference
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coin_hf.coders import average, gram_matrices, regmean, transposed_weights


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int) -> nn.Module:
    """conv -> ReLU -> linear, in float64, small enough for `lstsq`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 2, bias=True), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
        )
    return model.double().eval()


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("scale", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("betas", [[0.5, 0.5], [0.3, 0.7]])
def test_least_squares_reproduces_it(scale: float, betas: list[float]) -> None:
    models = [network(0), network(1)]
    data = [torch.randn(40, 2, 3, 3, generator=generator(i), dtype=torch.float64) for i in (0, 1)]
    grams = [gram_matrices(m, x, mode="conv") for m, x in zip(models, data, strict=True)]
    thetas = [parameters(model) for model in models]
    coded = regmean(thetas, grams, betas=betas, scale=scale)
    features = [nn.Flatten()(m[:2](x)).detach() for m, x in zip(models, data, strict=True)]
    expected = reference.least_squares(features, [t["3.weight"] for t in thetas], betas, scale)
    torch.testing.assert_close(coded["3.weight"], expected, rtol=1e-4, atol=1e-5)

    # A patch counts like any input; the mean is over samples, so four patches weigh four times.
    settings = ((2, 2), (1, 1), (0, 0), (1, 1))
    rows = [
        torch.tensor([row for image in x for row in reference.im2col(image, *settings)])
        for x in data
    ]
    weights = [theta["0.weight"].flatten(1) for theta in thetas]
    expected = reference.least_squares([r.double() for r in rows], weights, betas, scale)
    torch.testing.assert_close(coded["0.weight"].flatten(1), expected, rtol=1e-4, atol=1e-5)

    for name in ("0.bias", "3.bias"):
        mean = sum(beta * theta[name] for beta, theta in zip(betas, thetas, strict=True))
        torch.testing.assert_close(coded[name], mean)


def test_one_linear_layer_is_fitted_exactly() -> None:
    """The merged map's error on all experts' data is the least that any map can have."""
    experts = [nn.Linear(5, 3, bias=False).double() for _ in range(3)]
    data = [
        (i + 1) * torch.randn(30, 5, generator=generator(i), dtype=torch.float64) for i in range(3)
    ]
    with torch.no_grad():
        for i, expert in enumerate(experts):
            expert.weight.copy_(torch.randn(3, 5, generator=generator(9 + i)))
    grams = [gram_matrices(e, x) for e, x in zip(experts, data, strict=True)]
    betas = [1 / 3] * 3
    merged = regmean([parameters(e) for e in experts], grams, betas=betas, scale=1.0)["weight"]

    def error(weight: Tensor) -> float:
        pairs = zip(data, experts, strict=True)
        return sum(float((x @ (weight - e.weight).T).square().mean().detach()) for x, e in pairs)

    best = error(merged)
    for seed in range(20):
        step = torch.randn(3, 5, generator=generator(seed), dtype=torch.float64)
        for size in (1e-3, -1e-3, 0.1):
            assert error(merged + size * step) > best
    assert error(average([parameters(e) for e in experts], betas=betas)["weight"]) > 1.05 * best


def test_equal_grams_give_the_weighted_mean_and_equal_experts_themselves() -> None:
    models = [network(0), network(1)]
    x = torch.randn(40, 2, 3, 3, generator=generator(3), dtype=torch.float64)
    gram = gram_matrices(models[0], x, mode="conv")
    thetas = [parameters(model) for model in models]
    coded = regmean(thetas, [gram, gram], betas=[0.25, 0.75])
    mean = average(thetas, betas=[0.25, 0.75])
    for name, value in coded.items():
        torch.testing.assert_close(value, mean[name], rtol=1e-5, atol=1e-6)
    other = gram_matrices(models[0], 3 * x, mode="conv")
    same = regmean([thetas[0], thetas[0]], [gram, other], betas=[0.25, 0.75])
    assert all(torch.equal(value, thetas[0][name]) for name, value in same.items())


def test_the_order_of_the_experts_changes_nothing() -> None:
    models = [network(seed) for seed in range(3)]
    x = torch.randn(20, 2, 3, 3, generator=generator(3), dtype=torch.float64)
    grams = [gram_matrices(m, (i + 1) * x, mode="conv") for i, m in enumerate(models)]
    thetas, betas = [parameters(model) for model in models], [0.2, 0.3, 0.5]
    one = regmean(thetas, grams, betas=betas)
    two = regmean(thetas[::-1], grams[::-1], betas=betas[::-1])
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-10, atol=1e-12)


def test_dead_inputs_keep_the_weighted_mean() -> None:
    thetas = [{"weight": torch.randn(2, 3, generator=generator(i))} for i in (0, 1)]
    mean = average(thetas, betas=[0.5, 0.5])["weight"]
    live = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    coded = regmean(thetas, [{"weight": live}, {"weight": 5 * live}], betas=[0.5, 0.5])["weight"]
    torch.testing.assert_close(coded[:, 2], mean[:, 2])
    assert not torch.allclose(coded[:, :2], mean[:, :2], atol=1e-3)
    dead = {"weight": torch.zeros(3, 3)}
    torch.testing.assert_close(regmean(thetas, [dead, dead], betas=[0.5, 0.5])["weight"], mean)


def test_a_gram_that_rounding_made_indefinite_is_solved_all_the_same() -> None:
    thetas = [{"weight": torch.randn(2, 3, generator=generator(i))} for i in (0, 1)]
    row = torch.tensor([[1.0, 2.0, 3.0]])
    rank_one = row.T @ row - 1e-3 * torch.eye(3)
    coded = regmean(
        thetas, [{"weight": rank_one}, {"weight": 2 * rank_one}], betas=[0.5, 0.5], scale=1.0
    )["weight"]
    assert coded.isfinite().all()
    # Along the one direction that was seen, the least-squares answer.
    expected = (thetas[0]["weight"] + 2 * thetas[1]["weight"]) @ row.T / 3
    torch.testing.assert_close(coded @ row.T, expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_is_the_experts(dtype: torch.dtype) -> None:
    models = [network(seed).to(dtype) for seed in (0, 1)]
    x = torch.randn(4, 2, 3, 3, generator=generator(0)).to(dtype)
    grams = [gram_matrices(model, x, mode="conv") for model in models]
    coded = regmean([parameters(model) for model in models], grams, betas=[0.5, 0.5])
    assert {value.dtype for value in coded.values()} == {dtype}
    assert coded.keys() == parameters(models[0]).keys()
    assert all(value.isfinite().all() for value in coded.values())


class TestMessages:
    thetas = ({"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3)})
    grams = ({"w": torch.eye(3)}, {"w": torch.eye(3)})

    def refused(self, message: str, **changes: object) -> None:
        given = {"thetas": self.thetas, "grams": self.grams, "betas": [0.5, 0.5], **changes}
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            regmean(**given)  # type: ignore[arg-type]

    def test_they_name_what_is_wrong(self) -> None:
        one = self.grams[0]
        self.refused("scale must lie in [0, 1], got 1.5", scale=1.5)
        self.refused("betas must sum to 1, but 0.5, 0.6 sum to 1.1", betas=[0.5, 0.6])
        self.refused("expected the Grams of 2 experts, got 1", grams=[one])
        self.refused("experts 0 and 1 do not both have Grams of v", grams=[one, {**one, "v": 1}])
        self.refused(
            "there is a Gram of 'v', which is no parameter", grams=[{"v": torch.eye(3)}] * 2
        )
        self.refused(
            "the Gram of 'w' of expert 1 has shape (2, 2), expected (3, 3)",
            grams=[one, {"w": torch.eye(2)}],
        )
        self.refused(
            "the Gram of 'w' of expert 1 is not finite",
            grams=[one, {"w": torch.full((3, 3), float("inf"))}],
        )


class Blocks(nn.Module):
    """The same network by `nn.Linear` or by transformers' `Conv1D`, which stores (in, out)."""

    def __init__(self, seed: int, *, transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [(5, 5), (5, 4), (4, 3)]  # a square one, whose orientation no shape tells
        self.maps = nn.ModuleList(
            Conv1D(o, i) if transposed else nn.Linear(i, o) for i, o in sizes
        ).double()
        for (i, o), each in zip(sizes, self.maps, strict=True):
            weight = torch.randn(o, i, generator=generator, dtype=torch.float64)
            each.weight.data = weight.T.contiguous() if transposed else weight
            each.bias.data = torch.randn(o, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for each in self.maps:
            x = each(x.tanh())
        return x.mean(1)


def test_weights_stored_the_other_way_round_are_seen() -> None:
    x = torch.randn(30, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = {}
    for transposed in (False, True):
        models = [Blocks(seed, transposed=transposed) for seed in (0, 1)]
        grams = [gram_matrices(model, x) for model in models]
        names = transposed_weights(models[0], x)
        assert names == ({f"maps.{i}.weight" for i in range(3)} if transposed else set())
        thetas = [parameters(model) for model in models]
        found[transposed] = regmean(thetas, grams, betas=[0.3, 0.7], transposed=names)
    for name, value in found[False].items():
        other = found[True][name]
        torch.testing.assert_close(value, other.T if value.dim() == 2 else other)

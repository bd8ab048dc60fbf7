"""Linear maps as they are read from calls of torch functions, against the functions themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coin_hf.networks.linear_maps import Intercept, LinearMap, read
from coin_hf.networks.logits import call


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, W, B = normal(2, 5, 3), normal(4, 3, seed=1), normal(4, seed=2)
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = {
    "linear": (F.linear, (X, W, B), {}),
    "linear by name": (F.linear, (X,), {"weight": W, "bias": None}),
    "addmm": (torch.addmm, (B, X[0], W.t()), {}),
    "matmul": (torch.matmul, (X, W.t()), {}),
    "@": (Tensor.__matmul__, (X, W.t()), {}),
    "mm": (torch.mm, (X[0], W.t()), {}),
    "conv1d": (torch.conv1d, (normal(2, 3, 7), normal(4, 3, 2)), {"stride": 2, "padding": 1}),
    "conv2d": (torch.conv2d, (normal(2, 3, 7, 6), normal(4, 3, 3, 2), B, (2, 1), (1, 0), 2), {}),
    "conv2d, same": (torch.conv2d, (normal(2, 3, 7, 6), normal(4, 3, 2, 3), B, 1, "same"), {}),
    "conv2d, 1x1": (torch.conv2d, (normal(2, 3, 7, 6), normal(4, 3, 1, 1), B, 2), {}),
    "conv3d": (torch.conv3d, (normal(2, 3, 4, 3, 5), normal(4, 3, 2, 2, 2), B), {"dilation": 2}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CALLS)
def test_the_output_is_the_rows_times_the_matrix(name: str) -> None:
    function, args, kwargs = CALLS[name]
    expected = function(*args, **kwargs)
    found = read(function, args, kwargs)
    assert found is not None
    assert torch.equal(found(), expected)
    product = found.rows(found.input) @ found.matrix(found.weight).T
    if found.bias is not None:
        product = product + found.bias
    torch.testing.assert_close(product, found.flat(expected), rtol=1e-12, atol=1e-12)
    assert found.matrix(found.weight).data_ptr() == found.weight.data_ptr()  # a view


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.add, (X, X), {}),
        (torch.addmm, (B, X[0], W.t()), {"beta": 2}),
        (torch.addmm, (normal(5, 4), X[0], W.t()), {}),  # no bias, but a sum
        (torch.matmul, (X, normal(2, 3, 4)), {}),  # a product of two activations
        (torch.matmul, (normal(3), W.t()), {}),
        (torch.conv1d, (normal(3, 7), normal(4, 3, 2)), {}),  # one sample, without its axis
    ],
)
def test_other_calls_are_no_linear_maps(function: Any, args: Any, kwargs: Any) -> None:
    assert read(function, args, kwargs) is None


class Every(nn.Module):
    """Maps that are handed over, and what is left alone."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3)
            self.grouped = nn.Conv2d(4, 4, 1, groups=2)
            self.mixed = Conv1D(5, 4)
            self.free = nn.Parameter(torch.randn(5, 6))
            self.shifted = nn.Linear(6, 6, bias=False)
            self.shift = nn.Parameter(torch.randn(6))
            self.scaled = nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.conv(x)).mean((2, 3))
        x = self.mixed(x) @ self.free
        x = F.linear(x, self.shifted.weight, 2 * self.shift)  # a bias that is computed
        x = F.linear(x, 2 * self.scaled.weight, self.scaled.bias)  # a weight that is computed
        return self.head(x)


def test_a_networks_maps_come_with_their_names() -> None:
    model, found = Every(), list[LinearMap]()
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad(), Intercept(model, lambda each: found.append(each)):
        logits = call(model, x)
    with torch.no_grad():
        assert torch.equal(logits, model(x))
    assert [(each.name, each.bias_name, each.owned, each.transposed) for each in found] == [
        ("conv.weight", "conv.bias", True, False),
        ("mixed.weight", "mixed.bias", True, True),
        ("free", None, True, True),
        ("shifted.weight", None, False, False),
        ("head.weight", "head.bias", True, False),
    ]


def test_what_the_handler_returns_is_the_output() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with (
        torch.no_grad(),
        Intercept(model, lambda each: 2 * each() if each.name[0] == "0" else None),
    ):
        doubled = model(torch.ones(1, 3))
    with torch.no_grad():
        torch.testing.assert_close(doubled, model[1](2 * model[0](torch.ones(1, 3))))

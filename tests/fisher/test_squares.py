"""Products, pulls and sums of squares below the rules, in both precisions, against loops."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.convolution import by_tap, convolve
from coin_hf.fisher.squares import (
    add_grouped_products,
    add_jacobians,
    add_pairs,
    add_products,
    pairs_at_once,
    pairs_pay,
    position_pairs,
)
from coin_hf.fisher.vector_jacobian import linear_map, with_gradient
from coin_hf.networks import matmul as products
from coin_hf.networks.matmul import product
from coin_hf.networks.patches import patches

DTYPES = [torch.float32, torch.float64]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-12 if found.dtype == torch.float64 else 2e-5
    error = (found.double() - expected.double()).abs().max()
    return bool(error <= tolerance * expected.double().abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_the_one_of_the_definition(dtype: torch.dtype) -> None:
    for lead, turned_rows, turned_weight in itertools.product(
        [(5,), (2, 5), (2, 3, 1)], [False, True], [False, True]
    ):
        rows, weight = normal(*lead, 7, dtype=dtype), normal(4, 7, dtype=dtype, seed=1)
        if turned_rows:  # the same numbers, another order in memory
            rows = rows.transpose(0, -1).contiguous().transpose(0, -1)
        if turned_weight:
            weight = weight.t().contiguous().t()
        expected = (rows[..., None, :].double() * weight.double()).sum(-1)
        found = product(rows, weight)
        assert found.dtype == dtype
        assert close(found, expected)
    assert product(normal(0, 7, dtype=dtype), weight).shape == (0, 4)


def test_a_product_without_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = normal(5, 7, dtype=torch.float32), normal(4, 7, dtype=torch.float32, seed=1)
    expected = product(rows, weight)
    products._has_onednn.cache_clear()
    with monkeypatch.context() as patch:
        # A torch that has moved it, and one where it means something else.
        patch.setattr(products, "_by_onednn", lambda rows, weight: torch.ops.mkldnn.none(rows))
        assert not products._has_onednn()
        assert close(product(rows, weight), expected)
        products._has_onednn.cache_clear()
        patch.setattr(products, "_by_onednn", lambda rows, weight: rows @ weight.t() + 1)
        assert not products._has_onednn()
    products._has_onednn.cache_clear()


def test_a_product_under_autocast_has_its_dtype() -> None:
    rows, weight = normal(5, 7, dtype=torch.float32), normal(4, 7, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert product(rows, weight).dtype == F.linear(rows, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("learned", [False, True])
def test_a_linear_map_has_the_gradients_of_torchs(learned: bool, dtype: torch.dtype) -> None:
    x, w = normal(2, 3, 5, dtype=dtype).requires_grad_(), normal(4, 5, dtype=dtype, seed=1)
    bias = normal(4, dtype=dtype, seed=2)
    w.requires_grad_(learned)
    wanted = (x, w) if learned else (x,)
    vectors = normal(6, 2, 3, 4, dtype=dtype, seed=3)

    def gradients(output: Tensor) -> Sequence[Tensor]:
        def one(vector: Tensor) -> Any:
            return torch.autograd.grad(output, wanted, vector, retain_graph=True)

        single = [one(vector) for vector in vectors]
        batched = torch.func.vmap(one)(vectors)
        for number, each in enumerate(batched):
            assert close(each, torch.stack([row[number] for row in single]))
        return batched

    found, expected = linear_map(x, w, bias), F.linear(x, w, bias)
    assert close(found, expected)
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        assert close(one, other)


def test_what_a_pull_reads_is_let_go_with_the_graph() -> None:
    x, slope = normal(3).requires_grad_(), normal(3, seed=1)
    y = with_gradient(x, lambda x: 2 * x, torch.mul, slope)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)[0], slope)
    torch.autograd.grad(y, x, torch.ones(3))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, torch.ones(3))


def squares(g: Tensor, a: Tensor) -> Tensor:
    """sum_{m,l} (sum_t g[m,l,t,o] a[l,t,i])^2, as it is written."""
    total = torch.zeros(g.shape[3], a.shape[2], dtype=torch.float64)
    for m, sample in itertools.product(range(len(g)), range(len(a))):
        gradient = torch.zeros_like(total)
        for t in range(a.shape[1]):
            gradient += g[m, sample, t, :, None].double() * a[sample, t, None, :].double()
        total += gradient**2
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("buffer", [1, 50, 10**6])  # one row of J at a time, a few, all
@pytest.mark.parametrize(
    ("cotangents", "samples", "positions", "outputs", "inputs"),
    [(3, 4, 1, 5, 6), (3, 4, 2, 6, 5), (1, 2, 7, 3, 2), (4, 1, 30, 2, 9), (2, 3, 0, 2, 2)],
)
def test_squares_of_products_both_ways(
    cotangents: int,
    samples: int,
    positions: int,
    outputs: int,
    inputs: int,
    buffer: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coin_hf.fisher.squares.CACHE", buffer)
    monkeypatch.setattr("coin_hf.fisher.squares.PAIRS", buffer)
    g = normal(cotangents, samples, positions, outputs, dtype=dtype)
    a = normal(samples, positions, inputs, dtype=dtype, seed=1)
    everywhere = [(list(range(positions)), list(range(positions)))]
    start = normal(outputs, inputs, dtype=dtype, seed=2).abs()
    expected = start.double() + squares(g, a)
    ways = [lambda total: add_products(total, g, a)]
    if positions:
        ways += [
            lambda total: add_jacobians(total, g, a),
            lambda total: add_grouped_products(total[None], g[:, :, None], a[:, None]),
            lambda total: add_pairs(total[..., None], g, a, everywhere),
        ]
    for way in ways:
        total = start.clone()
        way(total)
        assert close(total, expected)
    for beside in [add_products, add_jacobians] if positions else [add_products]:
        total, bias = start.clone(), start[:, 0].clone()
        beside(total, g, a, bias)
        assert close(total, expected)
        assert close(bias, start[:, 0].double() + g.double().sum(2).square().sum((0, 1)))


SMALL = [
    (kernel, dilation, padding, step, size)
    for kernel, dilation, padding, step, size in itertools.product(
        [(1, 1), (3, 3), (3, 1)], [1, 2], [0, 1, 2], [1, 2], [1, 2, 3, 4]
    )
    if size + 2 * padding > dilation * (max(kernel) - 1)  # there is an output
]


@pytest.mark.parametrize(("kernel", "dilation", "padding", "step", "size"), SMALL)
def test_a_convolution_tap_by_tap(
    kernel: tuple[int, int], dilation: int, padding: int, step: int, size: int
) -> None:
    a = normal(2, 3, size, size + 1)
    settings = (step, padding, dilation)
    columns = patches(a, kernel, *settings)  # (P, T, C * taps)
    g = normal(2, 2, columns.shape[1], 4, seed=1)
    total = torch.zeros(4, 3, *kernel, dtype=torch.float64)
    meetings = by_tap(a.shape[2:], kernel, *settings)
    add_pairs(total.flatten(2), g, a.flatten(2).transpose(1, 2), meetings)
    assert close(total.flatten(1), squares(g, columns))


CONVOLUTIONS = [
    (kernel, padding, step, size)
    for (kernel, padding), step, size in itertools.product(
        [(1, 0), (1, 1), (3, 1), (3, "same"), (2, "valid")], [1, 2], [1, 2, 3, 6]
    )
    if (padding != "same" or step == 1) and (padding != "valid" or size >= kernel)
]


@pytest.mark.parametrize(("kernel", "padding", "step", "size"), CONVOLUTIONS)
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_convolving_has_the_gradients_of_torchs(
    dtype: torch.dtype, once: bool, kernel: int, padding: Any, step: int, size: int
) -> None:
    x = normal(2, 3, size, size, dtype=dtype).requires_grad_()
    w, b = normal(4, 3, kernel, kernel, dtype=dtype, seed=1), normal(4, dtype=dtype, seed=2)
    expected = F.conv2d(x, w, b, step, padding)
    found = convolve(torch.conv2d, x, w, b, step, padding, 1, 1, once=once)
    assert close(found, expected)
    vectors = normal(3, *expected.shape, dtype=dtype, seed=3)

    def one(vector: Tensor) -> Tensor:
        return torch.autograd.grad(found, x, vector, retain_graph=True)[0]

    for vector, batched in zip(vectors, torch.func.vmap(one)(vectors), strict=True):
        gradient = torch.autograd.grad(expected, x, vector, retain_graph=True)[0]
        assert close(one(vector), gradient)
        assert close(batched, gradient)


@pytest.mark.parametrize("function", [position_pairs, pairs_at_once])
def test_pairs_of_positions(function: Callable[..., Tensor]) -> None:
    v = normal(3, 2, 4, 5)
    pairs = [(t, s) for t in range(4) for s in range(t, 4)]
    columns = torch.stack([(v[:, :, t] * v[:, :, s]).sum(0) for t, s in pairs], 1)
    assert close(function(v), columns)
    twice = torch.tensor([1.0 if t == s else 2.0 for t, s in pairs], dtype=v.dtype)
    assert close(function(v, mirrored=True), columns * twice[:, None])


def test_pairs_pay_where_positions_are_few() -> None:
    def pays(positions: int, cotangents: int) -> bool:
        return pairs_pay([(list(range(positions)),) * 2], cotangents, 256, 256)

    assert pays(1, 1)
    assert pays(4, 10)
    assert not pays(64, 10)

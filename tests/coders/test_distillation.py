"""Distillation against AdamW in plain numbers, and against the closed-form answer."""

import pytest
import reference
import torch
from builders import timm_model
from torch import Tensor, nn

from coin_hf.coders import distill
from coin_hf.erasure.code import ErasureCode


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(seed: int) -> nn.Linear:
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(drawn(2, 3, seed=seed))
    return model


def test_the_steps_are_adamw_on_the_mean_squared_distance_of_each_batch() -> None:
    x, y, model = drawn(10, 3), drawn(10, 2, seed=1), linear(2)
    start = model.weight.detach().flatten().tolist()
    distill(model, x, y, epochs=3, lr=0.05, batch_size=4, weight_decay=0.2, seed=7)

    def gradient(theta: list[float], batch: list[int]) -> list[float]:
        found = [0.0] * 6
        for row in batch:
            for k in range(2):
                answer = sum(theta[3 * k + j] * float(x[row, j]) for j in range(3))
                for j in range(3):
                    found[3 * k + j] += 2 * (answer - float(y[row, k])) * float(x[row, j])
        return [value / len(batch) for value in found]

    order = torch.Generator().manual_seed(7)
    batches = [
        batch.tolist()
        for _ in range(3)
        for batch in torch.randperm(10, generator=order).split(4)  # 4, 4 and 2 rows
    ]
    expected = reference.adamw(start, gradient, batches, lr=0.05, weight_decay=0.2)
    torch.testing.assert_close(
        model.weight.detach().flatten(), torch.tensor(expected, dtype=torch.float64)
    )


def test_a_linear_model_converges_to_the_closed_form() -> None:
    x, model = drawn(40, 3), linear(3)
    experts = [linear(4), linear(5)]
    with torch.no_grad():
        targets = ErasureCode([0.3, 0.7]).encode([expert(x) for expert in experts])[0]
    for lr in (0.1, 0.01, 0.001):
        distill(model, x, targets, epochs=80, lr=lr, batch_size=40, weight_decay=0)
    best = torch.linalg.lstsq(x, targets).solution.T
    torch.testing.assert_close(model.weight.detach(), best, rtol=0, atol=1e-3)
    coded = 0.3 * experts[0].weight + 0.7 * experts[1].weight  # linear experts code exactly
    torch.testing.assert_close(model.weight.detach(), coded.detach(), rtol=0, atol=1e-3)


def test_a_network_fits_its_samples_and_keeps_its_statistics() -> None:
    experts = [timm_model(seed) for seed in (0, 1)]
    student = timm_model(0).train()
    student.get_parameter("fc.bias").requires_grad_(False)
    statistics = {name: value.clone() for name, value in student.named_buffers()}
    x = drawn(12, 3, 32, 32).float()
    with torch.no_grad():
        targets = ErasureCode([0.5, 0.5]).encode([expert(x) for expert in experts])[0]

    def loss() -> float:
        with torch.no_grad():
            return float((student.eval()(x) - targets).square().sum(1).mean())

    before, state, epochs = loss(), torch.get_rng_state(), list[int]()
    student.train()
    distill(student, x, targets, epochs=5, lr=1e-4, on_epoch=epochs.append)
    assert student.training
    assert epochs == [1, 2, 3, 4, 5]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, statistics[name]) for name, value in student.named_buffers())
    assert not student.get_parameter("fc.bias").requires_grad
    assert all(p.requires_grad for name, p in student.named_parameters() if name != "fc.bias")
    assert all(parameter.grad is None for parameter in student.parameters())
    assert loss() < 0.5 * before


def test_the_seed_orders_the_samples() -> None:
    def trained(seed: int) -> Tensor:
        model = linear(1)
        distill(model, drawn(9, 3), drawn(9, 2), epochs=2, lr=0.1, batch_size=2, seed=seed)
        return model.weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = linear(0)
    with pytest.raises(ValueError, match=r"loss is not finite: set a smaller distillation\.lr"):
        distill(model, drawn(4, 3), torch.full((4, 2), float("inf")), epochs=1)

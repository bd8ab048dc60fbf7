"""Distillation: train the coded model to reproduce the coded outputs on the samples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, count, fit_to, take
from coin_hf.networks.logits import call
from coin_hf.networks.modes import evaluating
from coin_hf.networks.processes import Processes

EpochEnd = Callable[[int], None]


def distill(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    epochs: int = 20,
    lr: float = 1e-5,
    batch_size: int = 8,
    weight_decay: float = 0.1,
    seed: int = 0,
    accelerator: Any = None,
    progress: bool = False,
    on_epoch: EpochEnd | None = None,
) -> None:
    """Minimise the coding loss by AdamW, from the current parameters, in place.

        (1/P) sum_l || f_c(x_l) - sum_i beta_i f_i(x_l) ||^2

    The network stays in eval mode: fixed BatchNorm statistics, no dropout. The gradient of a batch
    is summed over the processes before each step, so that every process takes the same step and
    the result does not depend on their number, up to rounding.
    Source: arXiv:2409.01420, eq. (5), the alternative to Fisher averaging.

    Args:
        model: The coded model, in float32 or float64; its parameters change. Its mode and flags
            are restored, its gradients cleared.
        inputs: P samples, a tensor (P, ...) or a mapping of tensors, the same in every process.
        targets: Target logits, sum_i beta_i f_i(x), shape (P, K).
        epochs: Passes over the samples.
        lr: AdamW's learning rate, constant.
        batch_size: Samples per step over all processes; the last of an epoch may have fewer.
        weight_decay: AdamW's weight decay.
        seed: Seed of the sample order, new in each epoch; no other random state is used.
        accelerator: An `accelerate.Accelerator` whose processes share each batch.
        progress: Show a bar on stderr, in the main process.
        on_epoch: Called after each epoch with its number, from 1, in every process.

    Raises:
        ValueError: If the loss becomes infinite or NaN.
    """
    processes = Processes.of(accelerator)
    steps = epochs * count(inputs)
    bar = processes.bar("distil", show=progress, unit="sample", total=steps)
    with evaluating(model), bar:
        model.requires_grad_(True)
        try:
            optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
            order = torch.Generator().manual_seed(seed)
            for epoch in range(1, epochs + 1):
                for rows in torch.randperm(count(inputs), generator=order).split(batch_size):
                    loss = _step(model, inputs, targets, rows, optimizer, processes)
                    bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
                    bar.update(len(rows))
                if on_epoch is not None:
                    on_epoch(epoch)
        finally:
            model.zero_grad()


def _step(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> float:
    """Take one step on a batch; return its mean loss."""
    mine = processes.share(rows)
    share = 1 / len(rows) if len(mine) else 0.0  # without samples, it adds zeros
    mine = mine if len(mine) else rows[:1]
    optimizer.zero_grad()
    with torch.enable_grad():
        logits = call(model, fit_to(take(inputs, mine), model))
        total = share * (logits - targets[mine].to(logits)).square().sum()
        total.backward()
    total = processes.sum(total.detach())
    if processes.world > 1:
        _sum_gradients(model, processes)
    if not total.isfinite():
        raise ValueError("the distillation loss is not finite: set a smaller distillation.lr")
    optimizer.step()
    return total.item()


def _sum_gradients(model: nn.Module, processes: Processes) -> None:
    """Sum the gradients over the processes, in one reduction."""
    used = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad.flatten() for parameter in used if parameter.grad is not None]
    summed = processes.sum(torch.cat(gradients))
    parts = summed.split([parameter.numel() for parameter in used])
    for parameter, part in zip(used, parts, strict=True):
        parameter.grad = part.view_as(parameter)

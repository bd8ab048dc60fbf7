"""The diagonal Fisher of a classifier over unlabeled samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.fisher.estimators import Estimator, cotangents_for
from coin_hf.fisher.generic import add_generic, sample_count, take
from coin_hf.fisher.state import borrowed
from coin_hf.outputs import to_device


def diagonal_fisher(
    model: nn.Module,
    inputs: Tensor | dict[str, Tensor],
    *,
    estimator: Estimator = "exact",
    probes: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    accelerator: Any = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Diag E_x[J^T J] of the raw logits (arXiv:2409.01420, eq. (16)); see the package's README."""
    total = sample_count(inputs)
    named = dict(model.named_parameters())
    device = next(iter(named.values())).device
    sums = {
        n: torch.zeros_like(p, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32)
        for n, p in named.items()
    }
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    mine = list(range(total))[rank::world]
    with borrowed(model):
        for index in mine:
            chunk = to_device(take(inputs, slice(index, index + 1)), device)

            def vectors(logits: Tensor, positions: Sequence[int], index: int = index) -> Tensor:
                return cotangents_for(logits, [index], estimator=estimator, probes=probes, seed=seed)

            add_generic(sums, model, chunk, vectors, named)
    if accelerator is not None:
        sums = {name: accelerator.reduce(value, "sum") for name, value in sums.items()}
    return {name: (value / total).cpu() for name, value in sums.items()}

"""Gram matrices of the inputs of a network's linear maps, including convolutions by im2col."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, batches, count, fit_to, take
from coin_hf.networks.linear_maps import Intercept, LinearMap
from coin_hf.networks.logits import call
from coin_hf.networks.matmul import product
from coin_hf.networks.modes import evaluating
from coin_hf.networks.padding import cut, real_rows, token_mask
from coin_hf.networks.processes import Processes

Mode = Literal["linear", "conv"]
"""`linear`: fully connected layers only; `conv`: dense convolutions as well."""


def gram_matrices(
    model: nn.Module,
    inputs: Inputs,
    *,
    mode: Mode = "linear",
    batch_size: int = 16,
    accelerator: Any = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Accumulate the Gram matrix of the inputs of every linear map.

        G = (1/P) sum_l sum_r x_r(l) x_r(l)^T

    r runs over the positions at which the map is applied to sample l: tokens without padding, or
    for a convolution the patches (im2col; for a 1x1 kernel the positions themselves). Maps are
    found where they are applied, so padding of images done beforehand is part of the input.
    Depthwise and grouped convolutions, and weights computed from parameters, have none.

    Args:
        model: A classifier on one device; run in eval mode, then restored.
        inputs: P samples, a tensor (P, ...) or a mapping of tensors. With an accelerator, the same
            ones in every process.
        mode: The maps to include.
        batch_size: Samples per forward pass.
        accelerator: An `accelerate.Accelerator` whose processes share the samples.
        progress: Show a bar on stderr, in the main process.

    Returns:
        Weight name -> matrix, shape (n, n) with n the entries of an input, on the model's device,
        float32 (float64 for a float64 model). The same for every batch size and number of
        processes, up to rounding.

    Raises:
        ValueError: If the model has no such map.
    """
    processes = Processes.of(accelerator)
    sums = {name: matrix.zero_() for name, matrix in _sums(model, take(inputs, [0]), mode).items()}
    if not sums:
        raise ValueError(
            f"RegMean in mode '{mode}' finds no linear map in {type(model).__name__}"
            + (": set regmean.mode to conv, or take another coder" if mode == "linear" else "")
        )
    mine = take(inputs, processes.part)
    with processes.bar("Gram", show=progress, unit="sample", total=count(mine)) as bar:
        for batch in batches(mine, batch_size):
            for name, matrix in _sums(model, batch, mode).items():
                sums[name] += matrix
            bar.update(count(batch))
    return {name: processes.sum(matrix) / count(inputs) for name, matrix in sums.items()}


def transposed_weights(model: nn.Module, inputs: Inputs) -> frozenset[str]:
    """Find the weights that a network stores as (inputs, outputs), as transformers' `Conv1D` does.

    Args:
        model: A classifier; run in eval mode, then restored.
        inputs: One sample or more, shape (P, ...).

    Returns:
        Their names, for `coin_hf.coders.regmean`.
    """
    found: set[str] = set()

    def note(each: LinearMap) -> None:
        if each.transposed:
            found.add(each.name)

    with evaluating(model), torch.no_grad(), Intercept(model, note):
        call(model, fit_to(take(inputs, [0]), model))
    return frozenset(found)


@torch.no_grad()
def _sums(model: nn.Module, batch: Any, mode: Mode) -> dict[str, Tensor]:
    """Sum the Gram matrices over one batch."""
    found: dict[str, Tensor] = {}
    batch = cut(fit_to(batch, model))
    mask, size = token_mask(batch), count(batch)

    def add(each: LinearMap) -> None:
        if each.convolution is not None and mode == "linear":
            return
        rows = each.rows(each.input)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        real = real_rows(each, mask, len(rows))
        rows = rows if real is None else rows[real]
        matrix = product(rows.T, rows.T)
        if isinstance(batch, Mapping) and len(each.input) == 1:
            matrix *= size  # a table of relative positions, which all texts of the batch share
        found[each.name] = found[each.name] + matrix if each.name in found else matrix

    with evaluating(model), Intercept(model, add):
        call(model, batch)
    return found

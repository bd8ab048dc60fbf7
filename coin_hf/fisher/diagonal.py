"""The diagonal Fisher of a classifier over unlabeled samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.fisher.batched_backward import add_chunk, make_plan
from coin_hf.fisher.borrow import borrowed
from coin_hf.fisher.checkpoint import Checkpoint, Partial
from coin_hf.fisher.chunks import chunk_sizes, chunks, keep_freed_memory
from coin_hf.fisher.estimators import Estimator, cotangents_for, resolve_estimator
from coin_hf.fisher.generic import Cotangents
from coin_hf.fisher.self_check import check_engine
from coin_hf.fisher.squares import accumulator_dtype
from coin_hf.networks.inputs import count, take, to_device
from coin_hf.networks.processes import Processes


@torch.inference_mode(False)  # the caller may be in inference mode
def diagonal_fisher(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    *,
    estimator: Estimator = "auto",
    probes: int = 4,
    batch_size: int | None = None,
    seed: int = 0,
    accelerator: Any = None,
    progress: bool = False,
    offload: bool = False,
    checkpoint: Checkpoint | None = None,
    self_check: bool = False,
) -> dict[str, Tensor]:
    """Compute diag E_x[J^T J], J the Jacobian of the raw logits w.r.t. the parameters.

        F = (1/P) sum_l sum_k (d f_k(x_l) / d theta)^2                exact
        F = (1/P) sum_l sum_j (d v_{jl}^T f(x_l) / d theta)^2         probe

    with, for each sample, `probes` orthogonal vectors v_{jl} of length sqrt(K / probes). Each chunk
    of samples takes one forward and one batched backward pass of activations. The squares are
    formed from layer inputs and output gradients (see `rules` and `squares`), without holding P or
    K gradients of the weights. Sums are in float32, or float64 for a float64 model. The result is
    the same for every batch size and number of processes, up to rounding.

    Source: arXiv:2409.01420, eq. (16).

    Args:
        model: A classifier of any architecture, on one device. It runs in eval mode; modes, flags,
            gradients and the random state are restored.
        inputs: P samples: a tensor (P, ...), or a mapping of keyword arguments (P, ...), such as
            what a tokenizer returns. With an accelerator, the same P samples in every process.
        estimator: `exact`; `probe`, whose cost does not grow with K; or `auto`, which is exact
            below 10 classes. As in a recipe.
        probes: Random directions per sample, used by `probe` only. As in a recipe.
        batch_size: Samples per pass; by default as many as fit in memory.
        seed: Seed of the probes; a sample's probes depend only on it and the sample's position.
        accelerator: An `accelerate.Accelerator` whose processes share the samples.
        progress: Show a bar on stderr, in the main process.
        offload: Keep the sums in CPU memory, for a model that fills its device.
        checkpoint: Stores partial sums, so that a stopped run can resume.
        self_check: First compare with plain autograd, in float64, on two samples.

    Returns:
        Parameter name -> tensor of its shape, on the CPU, float32 or float64, >= 0 up to rounding:
        the mean over samples of the sum over classes.

    Raises:
        ValueError: If there are no samples or no parameters, a parameter is not floating-point, the
            keyword arguments differ in length, `probes` or `batch_size` is below 1, the estimator
            is unknown, or a value is not finite.
        RuntimeError: If the self-check fails.

    Example:
        >>> model = nn.Linear(2, 3, bias=False)
        >>> diagonal_fisher(model, torch.tensor([[1.0, 2.0]]))["weight"]
        tensor([[1., 4.],
                [1., 4.],
                [1., 4.]])
    """
    inputs = _plain(inputs)
    total, parameters = count(inputs), dict(model.named_parameters())
    _check(total, parameters, probes=probes, batch_size=batch_size)
    resolve_estimator(1, estimator)  # reject an unknown name before computing anything
    device = next(iter(parameters.values())).device
    processes = Processes.of(accelerator)
    if self_check:
        check_engine(model, to_device(take(inputs, slice(0, 2)), device))
    partial = checkpoint.load() if checkpoint else None
    if partial is None:
        partial = Partial(0, batch_size or 0, 0, _zeros(parameters, "cpu" if offload else device))
    elif not offload:
        partial.sums = to_device(partial.sums, device)

    def cotangents(logits: Tensor, indices: Sequence[int]) -> Tensor:
        return cotangents_for(logits, indices, estimator=estimator, probes=probes, seed=seed)

    mine = processes.share(range(total))
    with borrowed(model):
        _add_samples(
            partial,
            model,
            inputs,
            mine,
            cotangents,
            device=device,
            batch_size=batch_size,
            checkpoint=checkpoint,
            bar=processes.bar("Fisher", show=progress, unit="sample", total=len(mine)),
        )
    fisher = {}
    for name, value in partial.sums.items():
        if processes.world > 1:
            value = processes.sum(value.to(device))
        fisher[name] = value.div_(total).cpu()
        # Nothing is negative but by rounding, and `max` propagates NaN: one pass over the memory.
        if value.numel() and not fisher[name].max().isfinite():
            raise ValueError(
                f"the Fisher of '{name}' is not finite: the weights or outputs are too large for "
                "the model's dtype, or a sample holds a value that is not finite"
            )
    return fisher


def _add_samples(
    partial: Partial,
    model: nn.Module,
    inputs: Any,
    mine: Sequence[int],
    cotangents: Cotangents,
    *,
    device: torch.device,
    batch_size: int | None,
    checkpoint: Checkpoint | None,
    bar: Any,
) -> None:
    """Add this process's samples after `partial.done`; cotangents are indexed globally."""
    if device.type == "cpu":
        keep_freed_memory()
    if partial.done < len(mine):
        plan = make_plan(model, to_device(take(inputs, _two(inputs, mine)), device))
        if partial.done == 0:
            vectors = len(cotangents(plan.logits, mine[:1]))
            partial.batch_size, partial.block = chunk_sizes(
                plan, len(mine), vectors, batch_size=batch_size, device=device
            )
    with bar:
        bar.update(partial.done)
        for indices, chunk in chunks(inputs, mine[partial.done :], partial.batch_size, device):

            def local(logits: Tensor, rows: Sequence[int], own: Sequence[int] = indices) -> Tensor:
                return cotangents(logits, [own[row] for row in rows])

            add_chunk(partial.sums, model, chunk, local, plan, block=partial.block)
            partial.done += len(indices)
            bar.update(len(indices))
            if checkpoint is not None:
                checkpoint.save(partial, final=partial.done == len(mine))


def _plain(inputs: Any) -> Any:
    """Return a tensor or a dict of tensors of one length, detached from their graph."""
    if not isinstance(inputs, Mapping):
        return inputs.clone() if inputs.is_inference() else inputs.detach()
    lengths = {name: len(value) for name, value in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected as many rows of each keyword argument, got {lengths}")
    return {name: _plain(value) for name, value in inputs.items()}


def _two(inputs: Any, mine: Sequence[int]) -> list[int]:
    """Pick the first sample and one that differs: a copy would hide an influence on others."""
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    for index in mine[1:]:
        if not all(torch.equal(part[mine[0]], part[index]) for part in parts):
            return [mine[0], index]
    return list(mine[:2])


def _zeros(parameters: dict[str, nn.Parameter], device: torch.device | str) -> dict[str, Tensor]:
    return {
        name: torch.zeros(value.shape, dtype=accumulator_dtype(value.dtype), device=device)
        for name, value in parameters.items()
    }


def _check(
    samples: int, parameters: dict[str, nn.Parameter], *, probes: int, batch_size: int | None
) -> None:
    if samples == 0:
        raise ValueError("the Fisher needs at least one sample, got inputs of length 0")
    if not parameters:
        raise ValueError("the model has no parameters to take a Fisher of")
    for name, value in parameters.items():
        if not value.is_floating_point():
            raise ValueError(
                f"'{name}' holds {str(value.dtype).removeprefix('torch.')} values, which cannot be "
                "differentiated: give a model that is not quantised"
            )
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")

"""Gram matrices of the inputs of a network's linear maps, its convolutions too by im2col."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from coin_hf.networks.logits import call
from coin_hf.networks.matmul import product

Mode = Literal["linear", "conv"]
"""`linear`: fully connected layers alone; `conv`: dense two-dimensional convolutions as well."""


def gram_matrices(
    model: nn.Module,
    inputs: Tensor,
    *,
    mode: Mode = "linear",
    batch_size: int = 16,
    accelerator: Any = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Accumulate the Gram matrix of the inputs of every linear map.

        G = (1/P) sum_l sum_r x_r(l) x_r(l)^T

    r runs over the places at which the map is applied to sample l: tokens, or for a convolution
    the patches (im2col; for a 1x1 kernel the positions themselves). Maps are found where they are
    applied, so that padding done beforehand counts as the input it is. Depthwise and grouped
    convolutions, and weights that are computed from parameters, have none.

    Args:
        model: A classifier on one device; run in eval mode, then left as it was.
        inputs: P samples, shape (P, ...). With an accelerator, the same ones in every process.
        mode: Which maps.
        batch_size: Samples in one forward pass.
        accelerator: An `accelerate.Accelerator` whose processes share the samples out.
        progress: Show a bar on stderr, in the main process.

    Returns:
        By the name of the weight the matrix, shape (n, n) with n the entries of an input, on the
        model's device, float32 (float64 where the model is). The same for every batch size and
        number of processes, but for rounding.

    Raises:
        ValueError: If the model has no such map.
    """
    sums = {name: matrix.zero_() for name, matrix in _of(model, inputs[:1], mode).items()}
    if not sums:
        raise ValueError(
            f"RegMean in mode '{mode}' finds no linear map in {type(model).__name__}"
            + (": set regmean.mode to conv, or take another coder" if mode == "linear" else "")
        )
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = inputs[rank::world]
    silent = not progress or rank != 0
    with tqdm(total=len(mine), desc="Gram", unit="sample", disable=silent) as bar:
        for batch in mine.split(batch_size) if len(mine) else ():
            for name, matrix in _of(model, batch, mode).items():
                sums[name] += matrix
            bar.update(len(batch))
    if world > 1:
        sums = {name: accelerator.reduce(matrix, "sum") for name, matrix in sums.items()}
    return {name: matrix / len(inputs) for name, matrix in sums.items()}


@torch.no_grad()
def _of(model: nn.Module, batch: Tensor, mode: Mode) -> dict[str, Tensor]:
    """Sum of the Gram matrices over one batch."""
    found: dict[str, Tensor] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    first = next(iter(model.parameters()))

    def add(weight: Tensor, rows: Callable[[], Tensor]) -> None:
        name = names.get(id(weight))
        if name is None:
            return
        wide = rows()
        wide = wide if wide.dtype == torch.float64 else wide.float()
        matrix = product(wide.T, wide.T)
        found[name] = found[name] + matrix if name in found else matrix

    with _in_eval_mode(model), _Maps(add, mode):
        call(model, batch.to(first.device, first.dtype))
    return found


class _Maps(TorchFunctionMode):
    """Tells of every linear map that is applied: its weight and how its input rows are made."""

    def __init__(self, add: Callable[[Tensor, Callable[[], Tensor]], None], mode: Mode) -> None:
        super().__init__()
        self.add, self.mode = add, mode

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            inputs, weight = _named(("input", "weight"), args, kwargs)
            self.add(weight, lambda: inputs.flatten(0, -2))  # (B * tokens, n)
        elif func in (F.conv2d, torch.conv2d) and self.mode == "conv":
            self._convolution(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        if groups == 1:
            self.add(weight, lambda: patches(input, weight, stride, padding, dilation))


def patches(inputs: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Write a convolution's input as the rows that its weight, flattened, is multiplied by.

    Args:
        inputs: Shape (B, C, H, W).
        weight: Shape (O, C, h, w).
        stride: Of the convolution: a number or two.
        padding: Of the convolution: a number, two, `same` or `valid`.
        dilation: Of the convolution: a number or two.

    Returns:
        Shape (B * positions, C * h * w).
    """
    kernel, step, spread = weight.shape[2:], _pair(stride), _pair(dilation)
    if padding == "same":  # as torch does it: what cannot be halved goes to the end
        total = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        before = [n // 2 for n in total]
        after = [n - b for n, b in zip(total, before, strict=True)]
        inputs = F.pad(inputs, (before[1], after[1], before[0], after[0]))
        padding = 0
    elif padding == "valid":
        padding = 0
    if tuple(kernel) == (1, 1) and _pair(padding) == (0, 0):
        return inputs[:, :, :: step[0], :: step[1]].movedim(1, -1).flatten(0, -2)
    columns = F.unfold(inputs, tuple(kernel), spread, _pair(padding), step)  # (B, C * h * w, L)
    return columns.transpose(1, 2).flatten(0, 1)


def _pair(value: Any) -> tuple[int, int]:
    first, *others = (value,) if isinstance(value, int) else tuple(value)
    return (first, others[0] if others else first)


def _named(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments by position or by name."""
    return [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

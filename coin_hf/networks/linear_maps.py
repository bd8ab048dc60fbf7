"""Read, find and intercept the linear maps of a network.

A network applies a linear map through a torch function: `F.linear`, a convolution, `torch.addmm` or
`matmul` (transformers' `Conv1D`). Intercepting functions instead of modules covers every module,
subclass and functional use that ends in one of these calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coin_hf.networks.matmul import product
from coin_hf.networks.patches import patches, windows


class Convolution(NamedTuple):
    """Settings of a convolution, in the order of its function's arguments."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One application of a linear map: y = W x + b for every row x of its input."""

    function: Callable[..., Tensor]
    """The torch function that was called."""
    input: Tensor
    """The map's input, shape (B, ...)."""
    weight: Tensor
    bias: Tensor | None = None
    transposed: bool = False
    """Whether the weight is stored as (inputs, outputs), as `addmm` and `matmul` take it."""
    convolution: Convolution | None = None
    name: str = ""
    """Parameter name of the weight, set by `Intercept`."""
    bias_name: str | None = None
    """Parameter name of the bias; None if there is none or it is computed from parameters."""

    def __call__(self) -> Tensor:
        """Compute the output with the current parameters."""
        if self.convolution is not None:
            return self.function(self.input, self.weight, self.bias, *self.convolution)
        if self.function is torch.addmm and self.bias is not None:
            return self.function(self.bias, self.input, self.weight)
        if self.transposed:
            return self.function(self.input, self.weight)
        return self.function(self.input, self.weight, self.bias)

    @property
    def owned(self) -> bool:
        """Whether weight and bias are the network's own parameters, not computed from them."""
        return bool(self.name) and (self.bias is None or self.bias_name is not None)

    @property
    def dense(self) -> bool:
        """Whether one matrix maps all inputs to all outputs: no groups."""
        return self.convolution is None or self.convolution.groups == 1

    def matrix(self, weight: Tensor) -> Tensor:
        """View a tensor of the weight's shape as the matrix W.

        Args:
            weight: The weight, or a tensor of its shape.

        Returns:
            Shape (outputs, inputs), sharing memory.
        """
        return weight.t() if self.transposed else weight.flatten(1)

    def rows(self, part: Tensor) -> Tensor:
        """Return inputs as the rows x that W multiplies: tokens, or patches of a convolution.

        Args:
            part: A part of `input` along its first axis.

        Returns:
            Shape (n, inputs).
        """
        if self.convolution is None:
            return part.flatten(0, -2)
        stride, padding, dilation, _ = self.convolution
        kernel = self.weight.shape[2:]
        return patches(part, kernel, stride, padding, dilation).flatten(0, 1)

    def chosen_rows(self, chosen: Tensor) -> Tensor:
        """Return some of the rows of the whole input, without forming the others.

        Args:
            chosen: Their numbers in `rows(input)`, shape (n,).

        Returns:
            Shape (n, inputs).
        """
        if self.convolution is None:
            return self.input.flatten(0, -2)[chosen]
        stride, padding, dilation, _ = self.convolution
        kernel = self.weight.shape[2:]
        views = windows(self.input, kernel, stride, padding, dilation)
        space = views.shape[2 + len(kernel) :]
        entry, place = chosen // space.numel(), chosen % space.numel()
        taps = [slice(None)] * (1 + len(kernel))
        where: tuple[Any, ...] = (entry, *taps, *torch.unravel_index(place, space))
        return views[where].flatten(1)

    def of_rows(self, rows: Tensor) -> Tensor:
        """Compute the outputs of rows with the current parameters.

        Args:
            rows: Shape (n, inputs).

        Returns:
            Shape (n, outputs), in the rows' dtype.
        """
        output = product(rows, self.matrix(self.weight).to(rows))
        return output if self.bias is None else output + self.bias.to(rows)

    def chosen_outputs(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Return some rows of an output.

        Args:
            output: The map's output for its whole input.
            chosen: Their numbers in `flat(output)`, shape (n,).

        Returns:
            Shape (n, outputs).
        """
        if self.convolution is None:
            return output.flatten(0, -2)[chosen]
        places = output[0, 0].numel()
        return output.flatten(2)[chosen // places, :, chosen % places]

    def count_rows(self, output: Tensor) -> int:
        """Count the rows of an output.

        Args:
            output: The map's output for its whole input.

        Returns:
            The length of `flat(output)`.
        """
        channels = -1 if self.convolution is None else 1
        return output.numel() // output.shape[channels]

    def flat(self, output: Tensor) -> Tensor:
        """Return outputs as rows, one for each of `rows`.

        Args:
            output: The map's output for a part of its input.

        Returns:
            Shape (n, outputs).
        """
        channels = -1 if self.convolution is None else 1
        return output.movedim(channels, -1).flatten(0, -2)


def _linear(function: Any, input: Tensor, weight: Tensor, bias: Any = None) -> LinearMap:
    return LinearMap(function, input, weight, bias)


def _addmm(
    function: Any, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> LinearMap | None:
    if (beta, alpha) != (1, 1) or input.dim() != 1:
        return None
    return LinearMap(function, mat1, mat2, input, transposed=True)


def _matmul(function: Any, input: Any, other: Any) -> LinearMap | None:
    tensors = isinstance(input, Tensor) and isinstance(other, Tensor)
    if not tensors or other.dim() != 2 or input.dim() < 2:
        return None
    return LinearMap(function, input, other, transposed=True)


def _convolve(
    function: Any, input: Tensor, weight: Tensor, bias: Any = None, *settings: Any, **named: Any
) -> LinearMap | None:
    if input.dim() != weight.dim():  # one sample without a batch axis
        return None
    convolution = Convolution(*settings, **named)
    return LinearMap(function, input, weight, bias, convolution=convolution)


READERS: dict[Any, Callable[..., LinearMap | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm), _matmul),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolve),
}
"""Torch function -> reader of its arguments."""


def read(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> LinearMap | None:
    """Read a call of a torch function as a linear map.

    Args:
        function: The function that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The map; None if the call is not a linear map.
    """
    reader = READERS.get(function)
    return None if reader is None else reader(function, *args, **kwargs)


class Intercept(TorchFunctionMode):
    """Pass every dense linear map by a network's own weights to `handle`.

    Weights computed from parameters, and grouped convolutions, are left alone. A computed bias has
    no name: see `LinearMap.owned`.

    Args:
        model: The network.
        handle: Takes the map; returns its output, or None to run it as usual.
    """

    def __init__(self, model: nn.Module, handle: Callable[[LinearMap], Tensor | None]) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in model.named_parameters()}
        self.handle = handle

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`, or take its output from `handle`."""
        kwargs = kwargs or {}
        found = read(func, args, kwargs)
        output = None if found is None else self._handled(found)
        return func(*args, **kwargs) if output is None else output

    def _handled(self, found: LinearMap) -> Tensor | None:
        name = self.names.get(id(found.weight))
        bias = self.names.get(id(found.bias))
        if name is None or not found.dense:
            return None
        return self.handle(replace(found, name=name, bias_name=bias))

"""Functions whose gradient is worked out by a function of our own, for all cotangents at once."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.networks.matmul import product


def with_gradient(
    input: Tensor, function: Callable[[Tensor], Tensor], pull: Callable[..., Tensor], *saved: Tensor
) -> Tensor:
    """Apply a function, and give its output a gradient.

    Args:
        input: x.
        function: x -> y, a new tensor.
        pull: Gradients of y, (M, *y.shape), and `saved` -> gradients of x, (M, *x.shape).
        saved: What `pull` reads; let go as soon as the backward pass has been here.

    Returns:
        y; differentiated once, batched or not.
    """
    return _Applied.apply(input, function, pull, *saved)


def linear_map(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, with a backward pass by `product` where the weight needs no gradient."""
    if weight.requires_grad:
        return F.linear(rows, weight, bias)
    output = with_gradient(
        rows, lambda x: product(x, weight), lambda g, w: product(g, w.t()), weight
    )
    return output if bias is None else output + bias


def ready_signature(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Keep the signature of `forward`, which torch works out anew at every call.

    Args:
        function: Decorated.

    Returns:
        The same.
    """
    function.forward.__signature__ = signature(function.forward)  # type: ignore[attr-defined]
    return function


@ready_signature
class _Applied(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, function: Any, pull: Any, *saved: Tensor) -> Tensor:
        return function(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.pull = inputs[2]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return _Pulled.apply(gradient, ctx.pull, *saved), None, None, *(None for _ in saved)


@ready_signature
class _Pulled(torch.autograd.Function):
    """What autograd differentiates one cotangent at a time, a vmap rule sees as one tensor."""

    @staticmethod
    def forward(gradient: Tensor, pull: Any, *saved: Tensor) -> Tensor:
        return pull(gradient[None], *saved)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, gradient: Tensor, pull: Any, *saved: Tensor
    ) -> tuple[Tensor, int]:
        return pull(gradient.movedim(in_dims[0], 0), *saved), 0

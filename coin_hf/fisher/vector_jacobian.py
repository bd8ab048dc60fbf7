"""Vector-Jacobian products for all cotangents at once."""

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
    """Apply a function with a custom gradient.

    Args:
        input: x.
        function: x -> y, a new tensor.
        pull: Gradients of y, (M, *y.shape), and `saved` -> gradients of x, (M, *x.shape).
        saved: Tensors that `pull` reads; released as soon as the backward pass has used them.

    Returns:
        y; differentiable once, batched or not.
    """
    return _Applied.apply(input, function, pull, *saved)


def linear_map(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply F.linear, with a backward pass by `product` where the weight needs no gradient."""
    if weight.requires_grad:
        return F.linear(rows, weight, bias)
    output = with_gradient(
        rows, lambda x: product(x, weight), lambda g, w: product(g, w.t()), weight
    )
    return output if bias is None else output + bias


def ready_signature(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Cache the signature of `forward`, which torch computes anew at every call.

    Args:
        function: The class to decorate.

    Returns:
        The same class.
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
    """Gives `pull` all cotangents as one tensor: autograd has one at a time, a vmap rule all."""

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

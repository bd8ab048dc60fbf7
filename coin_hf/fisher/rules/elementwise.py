"""Rules for elementwise functions: scales, shifts, slopes, and activations without parameters.

    scale, shift    y_t = w a_t,  a_t + w             dw = sum_t g_t a_t,  sum_t g_t
    prelu           y_t = max(a, 0) + w min(a, 0)     dw = sum_t g_t min(a_t, 0)

They also hold for derived tensors (see `coin_hf.fisher.tape`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.elementwise import Elementwise
from coin_hf.fisher.tape import Tape
from coin_hf.fisher.vector_jacobian import with_gradient


def prelu(tape: Tape, input: Tensor, weight: Tensor) -> Tensor | None:
    """Apply a slope w, shared or per channel, where the input is negative."""
    if not tape.samplewise(input) or input.dim() < 2 or not tape.takes(weight):
        return None
    output = F.prelu(input, weight.detach())
    inputs = input.detach()
    square = Elementwise(tape.samples, lambda: inputs.clamp(max=0), trailing=input.dim() - 2)
    return tape.watch(output, [inputs], {weight: square})


def scale(tape: Tape, input: Any, other: Any, **kwargs: Any) -> Tensor | None:
    """Multiply an activation by a parameter elementwise (layer scale, gates)."""
    if tape.takes(input) and not tape.takes(other):
        input, other = other, input
    output = _broadcast(tape, torch.mul, input, other, kwargs)
    if output is None:
        return None
    inputs = input.detach()
    square = Elementwise(tape.samples, lambda: inputs)
    return tape.watch(output, [inputs], {other: square})


def shift(function: Any, tape: Tape, input: Any, other: Any, **kwargs: Any) -> Tensor | None:
    """Add or subtract a parameter elementwise (position embedding)."""
    if tape.takes(input) and not tape.takes(other):
        if function is torch.sub:
            return None
        input, other = other, input
    output = _broadcast(tape, function, input, other, kwargs)
    if output is None:
        return None
    return tape.watch(output, [], {other: Elementwise(tape.samples)})


def addcmul(
    tape: Tape, input: Any, tensor1: Any, tensor2: Any, *, value: float = 1
) -> Tensor | None:
    """Scale and shift in one call (ConvNeXt V2)."""
    if value != 1 or not tape.takes_any(input, tensor1, tensor2):
        return None
    if tape.takes_any(tensor1, tensor2):
        product = scale(tape, tensor1, tensor2)
        if product is None:
            return None
    else:
        product = torch.mul(tensor1, tensor2)
    output = shift(torch.add, tape, product, input)
    return torch.add(product, input) if output is None else output


def activation(
    function: Callable[..., Tensor], tape: Tape, input: Tensor, *args: Any, **kwargs: Any
) -> Tensor | None:
    """Apply a parameter-free elementwise function; compute its slope once for all cotangents."""
    if not input.requires_grad or kwargs.get("inplace") or any(arg is True for arg in args):
        return None
    with torch.enable_grad():
        twin = input.detach().requires_grad_()
        slope = torch.autograd.grad(function(twin, *args, **kwargs).sum(), twin)[0]
    return with_gradient(input, lambda x: function(x, *args, **kwargs), torch.mul, slope)


def max_pool(tape: Tape, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Max-pool with unbatched gradients: batched, torch's takes ten times as long."""
    if not input.requires_grad or kwargs.get("return_indices") or any(arg is True for arg in args):
        return None
    with torch.enable_grad():
        twin = input.detach().requires_grad_()
        output = F.max_pool2d(twin, *args, **kwargs)

    def pull(gradient: Tensor) -> Tensor:
        each = [torch.autograd.grad(output, twin, g, retain_graph=True)[0] for g in gradient]
        return torch.stack(each)

    return with_gradient(input, lambda x: output.detach().clone(), pull)


def _broadcast(tape: Tape, function: Any, input: Any, other: Any, kwargs: Any) -> Tensor | None:
    """Return function(input, other) if a parameter is broadcast along an activation, else None."""
    if kwargs or not isinstance(input, Tensor) or not tape.takes(other) or tape.takes(input):
        return None
    if not tape.samplewise(input) or other.dim() > input.dim():
        return None
    if other.dim() == input.dim() and len(other) != 1:
        return None
    output = function(input, other.detach())
    return output if output.dim() == input.dim() and len(output) == len(input) else None

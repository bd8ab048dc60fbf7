"""Rules for norms: y = w xhat + b, with xhat the normalised input.

    dw = sum_t g_t xhat_t        db = sum_t g_t        elementwise, one sample at a time

xhat is computed from the function's *input*: its output may be modified in place later.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.elementwise import Elementwise
from coin_hf.fisher.squares import accumulator_dtype
from coin_hf.fisher.tape import Tape


def batch_norm(
    tape: Tape,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """BatchNorm with its running statistics: xhat = (a - mean) / sqrt(var + eps).

    Always as a product and a sum, also for parameters on the generic path: this is faster, and
    torch's own (2.14, on a CPU) sends a channels-last gradient to the wrong entries if the batch is
    one channels-first sample.
    """
    if training or running_mean is None or running_var is None:
        return None
    trailing = (1,) * (input.dim() - 2)
    rate = (running_var + eps).rsqrt()

    def normalise(weight: Tensor | None, bias: Tensor | None) -> Tensor:
        scale = rate if weight is None else rate * weight
        shift = -running_mean * scale
        if bias is not None:
            shift = shift + bias
        return torch.addcmul(shift.view(-1, *trailing), input, scale.view(-1, *trailing))

    if not tape.samplewise(input) or not tape.takes_any(weight, bias):
        return normalise(weight, bias)
    output = normalise(tape.detached(weight), tape.detached(bias))
    inputs = input.detach()

    def normalised() -> Tensor:
        kept = inputs.to(accumulator_dtype(inputs.dtype))
        return (kept - running_mean.view(-1, *trailing)) * rate.view(-1, *trailing)

    watched = _affine(tape, output, inputs, normalised, weight, bias, len(trailing))
    return normalise(weight, bias) if watched is None else watched


def layer_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """LayerNorm: xhat has mean 0 and variance 1 over the last axes."""
    shape = tuple(normalized_shape)
    if not tape.samplewise(input) or input.dim() <= len(shape):
        return None
    if not tape.takes_any(weight, bias):
        return None
    output = F.layer_norm(input, shape, tape.detached(weight), tape.detached(bias), eps)
    inputs = input.detach()

    def normalised() -> Tensor:
        return F.layer_norm(inputs.to(accumulator_dtype(inputs.dtype)), shape, eps=eps)

    return _affine(tape, output, inputs, normalised, weight, bias, 0)


def group_norm(
    tape: Tape,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """GroupNorm: xhat has mean 0 and variance 1 over each group of channels."""
    if not tape.samplewise(input) or not tape.takes_any(weight, bias):
        return None
    output = F.group_norm(input, num_groups, tape.detached(weight), tape.detached(bias), eps)
    inputs = input.detach()

    def normalised() -> Tensor:
        return F.group_norm(inputs.to(accumulator_dtype(inputs.dtype)), num_groups, eps=eps)

    return _affine(tape, output, inputs, normalised, weight, bias, input.dim() - 2)


def instance_norm(
    tape: Tape,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """InstanceNorm: a GroupNorm of single channels, or a BatchNorm with running statistics."""
    if use_input_stats:
        return group_norm(tape, input, input.shape[1], weight, bias, eps)
    return batch_norm(tape, input, running_mean, running_var, weight, bias, False, momentum, eps)


def rms_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor | None:
    """RMSNorm: xhat has mean square 1 over the last axes."""
    shape = tuple(normalized_shape)
    if not tape.samplewise(input) or input.dim() <= len(shape) or not tape.takes_any(weight):
        return None
    output = F.rms_norm(input, shape, tape.detached(weight), eps)
    inputs = input.detach()

    def normalised() -> Tensor:
        # The default eps is that of the input's dtype.
        small = torch.finfo(inputs.dtype).eps if eps is None else eps
        return F.rms_norm(inputs.to(accumulator_dtype(inputs.dtype)), shape, None, small)

    return _affine(tape, output, inputs, normalised, weight, None, 0)


def _affine(
    tape: Tape,
    output: Tensor,
    inputs: Tensor,
    normalised: Callable[[], Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    trailing: int,
) -> Tensor | None:
    """Watch y = w * xhat + b, with w and b `trailing` axes before the last."""
    square = Elementwise(tape.samples, normalised, trailing)
    squares = {
        (weight, bias): square.add,
        weight: square,
        bias: Elementwise(tape.samples, trailing=trailing),
    }
    return tape.watch(output, [inputs], squares)

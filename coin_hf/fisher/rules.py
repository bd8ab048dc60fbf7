"""One rule a torch function: its output, and the squared per-sample gradients of its parameters.

A rule is called in place of the function, with the same arguments. It returns None (decline: the
function then runs as always and its parameters go the generic way), or the output computed from
detached parameters, after telling the tape how to turn the gradient g of that output into squares.
With l a sample, m a cotangent and t a position, the per-sample gradients are

    linear, conv    y_t = W a_t + b       dW = sum_t g_t a_t^T      db = sum_t g_t
    norms           y_t = w xhat_t + b    dw = sum_t g_t xhat_t     db = sum_t g_t
    scale, shift    y_t = w a_t,  a_t + w dw = sum_t g_t a_t        dw = sum_t g_t
    prelu           y_t = max(a, 0) + w min(a, 0)                   dw = sum_t g_t min(a_t, 0)
    embedding       y_t = W[i_t]          dW[v] = sum of g_t over the t with i_t = v

(products elementwise but for the first line). The elementwise lines hold for derived tensors too
(see `tape`). The rules of norms take xhat from the *input* of the function: its output may be
changed in place later. Working on functions instead of on modules makes every module, subclass and
functional use that ends in one of these calls a case of the same rule.

The leading axis of an activation holds R rows for each of the P samples, sample after sample; R > 1
in windowed attention. That this is so is checked by `engine`, not believed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.convolution import by_tap, convolve, patches
from coin_hf.fisher.squares import (
    Elementwise,
    accumulator_dtype,
    add_grouped_products,
    add_pairs,
    add_products,
    pairs_pay,
)
from coin_hf.fisher.tape import Rule, Tape
from coin_hf.fisher.vector_jacobian import linear_map, with_gradient

POSITIONS = 64
"""Positions of an output up to which a convolution's squares may be formed tap by tap."""


def linear(tape: Tape, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Linear map of the last axis: y = a W^T + b."""
    if not tape.samplewise(input) or input.dim() < 2 or not _any_taken(tape, weight, bias):
        return None
    output = linear_map(input, _detached(tape, weight, direct=True), _detached(tape, bias))
    samples, inputs = tape.samples, _kept(input)

    def both(total: Tensor, beside: Tensor | None, gradient: Tensor) -> None:
        g = gradient.reshape(len(gradient), samples, -1, gradient.shape[-1])
        a = inputs.reshape(samples, -1, inputs.shape[-1]).to(g.dtype)
        add_products(total, g, a, beside)

    return tape.watch(output, [inputs], _with_bias(tape, weight, bias, both, output))


def addmm(
    tape: Tape, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    """Linear map by a weight that stands the other way round (GPT-2): y = a W + b."""
    if (beta, alpha) != (1, 1) or input.dim() != 1:
        return None
    return matmul(tape, mat1, mat2, input)


def matmul(tape: Tape, input: Any, other: Any, bias: Tensor | None = None) -> Tensor | None:
    """The same without a bias: y = a W."""
    if not tape.takes(other) or tape.is_derived(other) or tape.takes(input) or other.dim() != 2:
        return None
    if not tape.samplewise(input) or input.dim() < 2:
        return None
    output = linear_map(input, other.detach().t(), _detached(tape, bias))
    samples, inputs = tape.samples, _kept(input)

    def both(total: Tensor, beside: Tensor | None, gradient: Tensor) -> None:
        g = gradient.reshape(len(gradient), samples, -1, gradient.shape[-1])
        a = inputs.reshape(samples, -1, inputs.shape[-1]).to(g.dtype)
        add_products(total.t(), g, a, beside)

    return tape.watch(output, [inputs], _with_bias(tape, other, bias, both, output))


def conv(
    function: Callable[..., Tensor],
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Convolution over the last n axes: a linear map of the patches of the input."""
    n = weight.dim() - 2
    if input.dim() != n + 2 or not tape.samplewise(input) or not _any_taken(tape, weight, bias):
        return None
    settings = (stride, padding, dilation, groups)
    w, b = _detached(tape, weight, direct=True), _detached(tape, bias)
    output = convolve(function, input, w, b, *settings, once=tape.checking)
    samples, inputs = tape.samples, _kept(input)

    def weights(total: Tensor, gradient: Tensor) -> None:
        g = gradient.flatten(3).transpose(2, 3)  # (M, P * R, T, O)
        if groups == 1 and len(inputs) == samples and g.shape[2] <= POSITIONS:
            meetings = by_tap(inputs.shape[2:], weight.shape[2:], stride, padding, dilation)
            if pairs_pay(meetings, len(g), *weight.shape[:2]):
                a = inputs.flatten(2).transpose(1, 2).to(g.dtype)
                add_pairs(total.flatten(2), g, a, meetings)
                return
        columns = patches(inputs, weight.shape[2:], stride, padding, dilation).to(g.dtype)
        if groups == 1:  # columns: (P * R, T, I * taps)
            g = g.reshape(len(g), samples, -1, g.shape[-1])
            add_products(total.flatten(1), g, columns.reshape(samples, -1, columns.shape[-1]))
        else:
            g = g.unflatten(3, (groups, -1)).movedim(3, 2)  # (M, P * R, Q, T, O / Q)
            g = g.unflatten(1, (samples, -1)).movedim(2, 3).flatten(3, 4)
            columns = columns.unflatten(2, (groups, -1)).movedim(2, 1)  # (P * R, Q, T, I * taps)
            columns = columns.unflatten(0, (samples, -1)).movedim(1, 2).flatten(2, 3)
            add_grouped_products(total.view(groups, -1, columns.shape[-1]), g, columns)

    squares = {weight: weights, bias: Elementwise(samples, trailing=n)}
    return tape.watch(output, [inputs], _taken(tape, squares))


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
    """BatchNorm by its running statistics: xhat = (a - mean) / sqrt(var + eps).

    Always as a product and a sum, also for parameters that go the generic way: faster, and torch's
    own (2.14, on a CPU) passes a gradient in the order of channels last to the wrong entries if
    the batch is one sample in the order of channels first.
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

    if not tape.samplewise(input) or not _any_taken(tape, weight, bias):
        return normalise(weight, bias)
    output = normalise(_detached(tape, weight), _detached(tape, bias))
    inputs = _kept(input)

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
    if not _any_taken(tape, weight, bias):
        return None
    output = F.layer_norm(input, shape, _detached(tape, weight), _detached(tape, bias), eps)
    inputs = _kept(input)

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
    if not tape.samplewise(input) or not _any_taken(tape, weight, bias):
        return None
    output = F.group_norm(input, num_groups, _detached(tape, weight), _detached(tape, bias), eps)
    inputs = _kept(input)

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
    """InstanceNorm: a GroupNorm of single channels, or a BatchNorm by its running statistics."""
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
    if not tape.samplewise(input) or input.dim() <= len(shape) or not _any_taken(tape, weight):
        return None
    output = F.rms_norm(input, shape, _detached(tape, weight), eps)
    inputs = _kept(input)

    def normalised() -> Tensor:
        # The default eps is that of the input's dtype.
        small = torch.finfo(inputs.dtype).eps if eps is None else eps
        return F.rms_norm(inputs.to(accumulator_dtype(inputs.dtype)), shape, None, small)

    return _affine(tape, output, inputs, normalised, weight, None, 0)


def prelu(tape: Tape, input: Tensor, weight: Tensor) -> Tensor | None:
    """Slope w, one or one a channel, where the input is negative."""
    if not tape.samplewise(input) or input.dim() < 2 or not tape.takes(weight):
        return None
    output = F.prelu(input, weight.detach())
    inputs = _kept(input)
    square = Elementwise(tape.samples, lambda: inputs.clamp(max=0), trailing=input.dim() - 2)
    return tape.watch(output, [inputs], {weight: square})


def embedding(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    """Rows of a table; a row that one sample uses twice is summed before it is squared."""
    if max_norm is not None or scale_grad_by_freq or sparse:
        return None
    if not tape.takes(weight) or tape.is_derived(weight):
        return None
    if input.dim() > 1 and len(input) == 1:
        # Positions shared by all samples: a copy for each makes the gradient a per-sample one.
        input = input.expand(tape.samples, *input.shape[1:])
    if not tape.samplewise(input):
        return None
    output = F.embedding(input, weight.detach())
    samples = tape.samples
    tokens = input.reshape(samples, -1)  # (P, T)

    def rows(total: Tensor, gradient: Tensor) -> None:
        g = gradient.reshape(len(gradient), samples, -1, gradient.shape[-1])  # (M, P, T, D)
        same = (tokens[:, :, None] == tokens[:, None, :]).to(g.dtype)  # (P, T, T)
        first = same.argmax(-1)  # the earliest position with the same token
        gather = torch.zeros_like(same).scatter_(1, first[:, None, :], 1.0)
        squared = (gather @ g).square_().sum(0)  # (P, T, D), zero but at earliest positions
        if padding_idx is not None:
            squared[tokens == padding_idx % len(total)] = 0
        total.index_add_(0, tokens.flatten(), squared.flatten(0, 1))

    return tape.watch(output, [tokens], {weight: rows})


def scale(tape: Tape, input: Any, other: Any, **kwargs: Any) -> Tensor | None:
    """Elementwise product of an activation and a parameter (layer scale, gates)."""
    if tape.takes(input) and not tape.takes(other):
        input, other = other, input
    output = _broadcast(tape, torch.mul, input, other, kwargs)
    if output is None:
        return None
    inputs = _kept(input)
    square = Elementwise(tape.samples, lambda: inputs)
    return tape.watch(output, [inputs], {other: square})


def shift(function: Any, tape: Tape, input: Any, other: Any, **kwargs: Any) -> Tensor | None:
    """Elementwise sum or difference of an activation and a parameter (position embedding)."""
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
    """Scale and shift in one (ConvNeXt V2)."""
    if value != 1 or not _any_taken(tape, input, tensor1, tensor2):
        return None
    if _any_taken(tape, tensor1, tensor2):
        product = scale(tape, tensor1, tensor2)
        if product is None:
            return None
    else:
        product = torch.mul(tensor1, tensor2)
    output = shift(torch.add, tape, product, input)
    return torch.add(product, input) if output is None else output


def expand(
    function: Callable[..., Tensor], tape: Tape, input: Tensor, *sizes: Any, **kwargs: Any
) -> Tensor | None:
    """A parameter repeated for every sample (class token)."""
    if not tape.takes(input) or input.dim() == 0 or len(input) != 1:
        return None
    output = function(input.detach(), *sizes, **kwargs)
    if output.dim() != input.dim() or len(output) != tape.samples:
        return None
    if function is Tensor.repeat and output.shape[1:] != input.shape[1:]:
        return None
    return tape.watch(output, [], {input: Elementwise(tape.samples)})


def attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor | None:
    """Attention with a learned bias, of which every sample gets a copy with its own gradient."""
    if attn_mask is None or not tape.takes(attn_mask) or not tape.samplewise(query):
        return None
    if attn_mask.dim() == query.dim() and len(attn_mask) != 1:
        return None
    last = attn_mask.shape[1 - query.dim() :]
    shape = (len(query), *(1,) * (query.dim() - 1 - len(last)), *last)
    copies = attn_mask.detach().expand(shape)
    watched = tape.watch(copies, [], {attn_mask: Elementwise(tape.samples)})
    if watched is None:
        return None
    return F.scaled_dot_product_attention(query, key, value, watched, *args, **kwargs)


def activation(
    function: Callable[..., Tensor], tape: Tape, input: Tensor, *args: Any, **kwargs: Any
) -> Tensor | None:
    """Elementwise function without parameters: its slope is worked out once for all cotangents."""
    if not input.requires_grad or kwargs.get("inplace") or True in args:
        return None
    with torch.enable_grad():
        twin = input.detach().requires_grad_()
        slope = torch.autograd.grad(function(twin, *args, **kwargs).sum(), twin)[0]
    return with_gradient(input, lambda x: function(x, *args, **kwargs), torch.mul, slope)


def max_pool(tape: Tape, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Largest value of each window: batched, torch's gradient takes ten times as long."""
    if not input.requires_grad or kwargs.get("return_indices") or True in args:
        return None
    with torch.enable_grad():
        twin = input.detach().requires_grad_()
        output = F.max_pool2d(twin, *args, **kwargs)

    def pull(gradient: Tensor) -> Tensor:
        each = [torch.autograd.grad(output, twin, g, retain_graph=True)[0] for g in gradient]
        return torch.stack(each)

    return with_gradient(input, lambda x: output.detach().clone(), pull)


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
    return tape.watch(output, [inputs], _taken(tape, squares))


def _broadcast(tape: Tape, function: Any, input: Any, other: Any, kwargs: Any) -> Tensor | None:
    """function(input, other) where a parameter is broadcast along an activation, else None."""
    if kwargs or not isinstance(input, Tensor) or not tape.takes(other) or tape.takes(input):
        return None
    if not tape.samplewise(input) or other.dim() > input.dim():
        return None
    if other.dim() == input.dim() and len(other) != 1:
        return None
    output = function(input, other.detach())
    return output if output.dim() == input.dim() and len(output) == len(input) else None


def _kept(input: Tensor) -> Tensor:
    """What a callback reads later."""
    return input.detach()


def _detached(tape: Tape, tensor: Any, *, direct: bool = False) -> Any:
    """Without its gradient if the rule takes it (`direct`: only as a parameter), else as it is."""
    takes = tape.takes(tensor) and not (direct and tape.is_derived(tensor))
    return tensor.detach() if takes else tensor


def _any_taken(tape: Tape, *tensors: Any) -> bool:
    return any(tape.takes(tensor) for tensor in tensors)


def _with_bias(
    tape: Tape, weight: Tensor, bias: Tensor | None, both: Callable[..., None], output: Tensor
) -> dict[Any, Any]:
    """Squares of a linear map's parameters: `both` takes a running sum of each, or no bias."""

    def alone(total: Tensor, gradient: Tensor) -> None:
        both(total, None, gradient)

    squares: dict[Any, Any] = {weight: alone, bias: Elementwise(tape.samples)}
    if bias is not None and bias.shape == output.shape[-1:]:
        squares = {(weight, bias): both, **squares}
    return _taken(tape, squares)


def _taken(tape: Tape, squares: dict[Any, Any]) -> dict[Any, Any]:
    """Of these squares those that the tape wants, each parameter once, the first that take it.

    A derived tensor is taken elementwise only, and by itself.
    """
    chosen: dict[Any, Any] = {}
    done: set[int] = set()
    for key, square in squares.items():
        group = key if isinstance(key, tuple) else (key,)
        direct = not isinstance(square, Elementwise)
        if any(id(tensor) in done for tensor in group):
            continue
        if all(tape.takes(t) and not (direct and tape.is_derived(t)) for t in group):
            chosen[key] = square
            done.update(map(id, group))
    return chosen


RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.addmm: addmm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm), matmul),
    torch.conv1d: partial(conv, torch.conv1d),
    torch.conv2d: partial(conv, torch.conv2d),
    torch.conv3d: partial(conv, torch.conv3d),
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.rms_norm: rms_norm,
    torch.prelu: prelu,
    F.embedding: embedding,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), scale),
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), partial(shift, torch.add)
    ),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), partial(shift, torch.sub)),
    F.max_pool2d: max_pool,
    F.gelu: partial(activation, F.gelu),
    F.silu: partial(activation, F.silu),
    torch.addcmul: addcmul,
    **{
        function: partial(expand, function)
        for function in (Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.broadcast_to)
    },
    F.scaled_dot_product_attention: attention,
}

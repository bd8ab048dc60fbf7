"""Rule for linear maps: y_t = W a_t + b at every position t.

dW = sum_t g_t a_t^T        db = sum_t g_t        one sample at a time
"""

from typing import Any

from torch import Tensor

from coin_hf.fisher.elementwise import Elementwise
from coin_hf.fisher.squares import add_products
from coin_hf.fisher.tape import Tape
from coin_hf.fisher.vector_jacobian import linear_map
from coin_hf.networks.linear_maps import read


def linear(function: Any, tape: Tape, *args: Any, **kwargs: Any) -> Tensor | None:
    """Apply a linear map to the last axis, its weight stored either way round."""
    found = read(function, args, kwargs)
    if found is None or not tape.samplewise(found.input) or found.input.dim() < 2:
        return None
    input, weight, bias = found.input, found.weight, found.bias
    if found.transposed:  # `matmul` may multiply anything: take only a parameter itself
        if not tape.takes(weight) or tape.is_derived(weight) or tape.takes(input):
            return None
    elif not tape.takes_any(weight, bias):
        return None
    w = tape.detached(weight, direct=True)
    output = linear_map(input, w.t() if found.transposed else w, tape.detached(bias))
    samples, inputs = tape.samples, input.detach()

    def both(total: Tensor, beside: Tensor | None, gradient: Tensor) -> None:
        g = gradient.reshape(len(gradient), samples, -1, gradient.shape[-1])  # (M, P, T, O)
        a = inputs.reshape(samples, -1, inputs.shape[-1]).to(g.dtype)  # (P, T, I)
        add_products(total.t() if found.transposed else total, g, a, beside)

    def alone(total: Tensor, gradient: Tensor) -> None:
        both(total, None, gradient)

    squares: dict[Any, Any] = {weight: alone, bias: Elementwise(samples)}
    if bias is not None and bias.shape == output.shape[-1:]:
        squares = {(weight, bias): both, **squares}
    return tape.watch(output, [inputs], squares)

"""Rule for convolutions: the linear map of the patches of the input."""

from typing import Any

from torch import Tensor

from coin_hf.fisher.convolution import by_tap, convolve
from coin_hf.fisher.elementwise import Elementwise
from coin_hf.fisher.squares import add_grouped_products, add_pairs, add_products, pairs_pay
from coin_hf.fisher.tape import Tape
from coin_hf.networks.linear_maps import read
from coin_hf.networks.patches import patches

POSITIONS = 64
"""Most output positions at which the squares may be formed tap by tap."""


def convolution(function: Any, tape: Tape, *args: Any, **kwargs: Any) -> Tensor | None:
    """Apply a convolution over the last n axes, grouped or not."""
    found = read(function, args, kwargs)
    if found is None or found.convolution is None or not tape.samplewise(found.input):
        return None
    input, weight, bias = found.input, found.weight, found.bias
    if not tape.takes_any(weight, bias):
        return None
    stride, padding, dilation, groups = found.convolution
    w, b = tape.detached(weight, direct=True), tape.detached(bias)
    output = convolve(function, input, w, b, *found.convolution, once=tape.checking)
    samples, inputs = tape.samples, input.detach()

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

    trailing = weight.dim() - 2
    return tape.watch(
        output, [inputs], {weight: weights, bias: Elementwise(samples, trailing=trailing)}
    )

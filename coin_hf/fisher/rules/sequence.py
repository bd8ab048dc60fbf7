"""Rules for sequences: embedding tables, tokens given to every sample, attention biases.

embedding       y_t = W[i_t]          dW[v] = sum of g_t over the t with i_t = v
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.elementwise import Elementwise
from coin_hf.fisher.tape import Tape


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
    """Look up rows of a table; the gradients of a row used twice are summed before squaring."""
    if max_norm is not None or scale_grad_by_freq or sparse:
        return None
    if not tape.takes(weight) or tape.is_derived(weight):
        return None
    if input.dim() > 1 and len(input) == 1:
        # Positions shared by all samples: one copy each makes the gradient per-sample.
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


def expand(
    function: Callable[..., Tensor], tape: Tape, input: Tensor, *sizes: Any, **kwargs: Any
) -> Tensor | None:
    """Repeat a parameter for every sample (class token)."""
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
    """Attend with a learned bias, of which every sample gets a copy with its own gradient."""
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

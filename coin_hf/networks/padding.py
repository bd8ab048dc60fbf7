"""Padding of texts: which rows of a linear map's input stand for no token.

A batch of texts is as long as its longest text; what fills up the others is left out of attention,
so that the logits do not depend on it. But every map is applied to it too, and where the inputs of
maps are counted, as by least squares, such rows would be fitted in place of the text.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from coin_hf.networks.inputs import Inputs
from coin_hf.networks.linear_maps import LinearMap


def token_mask(inputs: Inputs) -> Tensor | None:
    """Say which positions of a batch hold tokens.

    Args:
        inputs: A batch; of texts, with their `attention_mask`.

    Returns:
        Booleans of shape (B, T), false for padding; None where nothing is padded.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None or mask.dim() != 2 or bool((mask != 0).all()):
        return None
    return mask != 0


def real_rows(each: LinearMap, mask: Tensor | None, count: int) -> Tensor | None:
    """Say which rows of a map's input are tokens, not padding.

    A map is applied to all tokens where its input has the axes (B, T, ...) or (B * T, ...), or is
    (B, n, T) for a convolution along the text. Others, such as of a pooled token (B, n) or of a
    table of positions, have no padding.

    Args:
        each: The map, applied to the whole batch.
        mask: The batch's `token_mask`.
        count: How many rows the map's input has.

    Returns:
        Booleans, one for each row; None if all are real.

    Raises:
        ValueError: If the network rearranges or shortens its texts, so that it cannot be told.
    """
    if mask is None:
        return None
    texts, length = mask.shape
    shape = tuple(each.input.shape)
    if each.convolution is not None:
        along = len(shape) == 3 and shape[0] == texts and count == mask.numel()
        return mask.flatten() if along else None
    if shape[:2] == (texts, length) and len(shape) > 2:
        inner = count // mask.numel()
    elif shape[0] == mask.numel():
        inner = count // shape[0]
    elif len(shape) > 2 and shape[0] != 1:
        raise ValueError(
            f"'{each.name}' is applied to {shape[:-1]} rows for {texts} texts of {length} tokens, "
            "of which none can be told from padding: least squares on the inputs of maps cannot "
            "leave it out; take the coder 'coin', without the step `layerwise`"
        )
    else:
        return None
    return mask.flatten().repeat_interleave(inner)


def cut(inputs: Inputs) -> Any:
    """Drop the positions at the end of a batch that are padding in all its texts.

    Args:
        inputs: A batch.

    Returns:
        The batch, as long as its longest text; inputs without an `attention_mask` as they are.
    """
    mask = token_mask(inputs)
    if mask is None or not isinstance(inputs, Mapping):
        return inputs
    length = mask.shape[1]
    used = mask.any(0).nonzero()
    end = int(used[-1]) + 1 if len(used) else length
    return {
        name: value[:, :end] if value.dim() > 1 and value.shape[1] == length else value
        for name, value in inputs.items()
    }

"""Inputs to try a network on before any data is read: images of noise, or a few texts."""

from functools import cache

import numpy as np
from PIL.Image import Image, fromarray

from coin_hf.experts.text_preprocessing import AnyPreprocessing, TextPreprocessing
from coin_hf.networks.inputs import Inputs, stack

TEXTS = ("a", "A probe, and one that is longer than the others: 0123456789!", "the first of two")
"""Texts of several lengths."""


def probe_batch(preprocessing: AnyPreprocessing) -> Inputs:
    """Return a batch of a few different inputs.

    Args:
        preprocessing: An expert's.

    Returns:
        Shape (B, ...), B > 1; texts padded to the longest.

    Raises:
        InputError: If the preprocessing fails on them.
    """
    if isinstance(preprocessing, TextPreprocessing):
        return preprocessing.padded([preprocessing(text) for text in TEXTS])
    noise = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    batch: Inputs = stack([preprocessing(fromarray(each)) for each in (noise, 255 - noise)])
    return batch


def probe_singles(preprocessing: AnyPreprocessing) -> list[Inputs]:
    """Return batches of one input each, of several sizes or lengths.

    Args:
        preprocessing: An expert's.

    Returns:
        Each of shape (1, ...); texts without padding.

    Raises:
        InputError: If the preprocessing fails on one.
    """
    if isinstance(preprocessing, TextPreprocessing):
        return [stack([preprocessing(text)]) for text in TEXTS]
    return [stack([preprocessing(image)]) for image in images()]


@cache
def images() -> tuple[Image, ...]:
    """Return images of noise, tall, wide and square, small and large, grey and in colour."""
    noise = np.random.default_rng(0)
    sizes = [(37, 53), (300, 120), (256, 256, 3), (90, 260, 3), (11, 8, 3)]
    return tuple(fromarray(noise.integers(0, 256, size, dtype=np.uint8)) for size in sizes)

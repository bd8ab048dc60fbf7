"""Borrow a model for a pass over the samples and restore it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from coin_hf.networks.modes import restored


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in eval mode with every parameter requiring a gradient, then undo it.

    Modes, `requires_grad` flags and the caller's random state are restored even after an exception.
    `.grad` is untouched: nothing here calls `backward`.

    Args:
        model: The network to borrow.

    Yields:
        The same model.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), restored(model):
        try:
            refresh(model)
            model.requires_grad_(True)
            yield model
        finally:
            refresh(model)


def refresh(model: nn.Module) -> None:
    """Clear what a model has cached from its parameters for eval mode.

    Some cache a bias looked up in a table (LeViT): with the graph of an earlier pass, or none, the
    table would seem unused in every later one.
    """
    model.train()
    model.eval()

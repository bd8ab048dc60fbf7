"""Borrow a model for a pass over the samples and give it back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from coin_hf.networks.modes import restored


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in eval mode with every parameter requiring a gradient, then undo it.

    Modes, `requires_grad` flags and the caller's random state come back also after an exception.
    `.grad` needs no care: nothing here calls `backward`.

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
    """Make a model forget what it has computed from its parameters for eval mode.

    Some keep a bias looked up from its table (LeViT): with the graph of an earlier pass, or none,
    the table would seem to be used in no later one.
    """
    model.train()
    model.eval()

"""Save and restore a network's training modes and gradient flags."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored(model: nn.Module) -> Iterator[nn.Module]:
    """Restore each module's training mode and each parameter's `requires_grad` on exit.

    Args:
        model: The network.

    Yields:
        The same network.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run a network in eval mode: fixed BatchNorm statistics, no dropout.

    Args:
        model: The network; its modes are restored on exit.

    Yields:
        The same network.
    """
    with restored(model):
        yield model.eval()

"""Check the engine against plain autograd, on the user's own model."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.fisher.batched_backward import add_chunk, make_plan
from coin_hf.fisher.borrow import borrowed
from coin_hf.fisher.generic import add_generic
from coin_hf.fisher.probe import cotangents
from coin_hf.networks.inputs import cast, count

DIRECTIONS = 8
"""Cotangents compared: enough, since the engine treats all alike."""
TOLERANCE = 1e-6
"""Largest error of an entry, relative to the parameter's largest entry, in float64."""
ROUNDING = 1e-20
"""Squares of gradients below this share of the largest one are rounding."""


def check_engine(model: nn.Module, inputs: Any) -> None:
    """Compare the engine with a backward pass for each sample and cotangent.

    Both run in float64, on a copy of the model: in float32 rounding flips the gates of a ReLU, and
    both are off.

    Args:
        model: The classifier.
        inputs: A few samples, a tensor or a dict of tensors.

    Raises:
        RuntimeError: If they differ; the parameters are named.
    """
    twin = copy.deepcopy(model).double()
    inputs = cast(inputs, torch.float64)
    samples = range(count(inputs))

    def vectors(logits: Tensor, positions: Any) -> Tensor:
        classes = logits.shape[1]
        return cotangents(
            list(positions),
            classes,
            probes=min(DIRECTIONS, classes),
            seed=0,
            dtype=logits.dtype,
            device=logits.device,
        )

    parameters = dict(twin.named_parameters())
    fast = {name: torch.zeros_like(value) for name, value in parameters.items()}
    slow = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with borrowed(twin):
        plan = make_plan(twin, inputs)
        add_chunk(fast, twin, inputs, vectors, plan, block=DIRECTIONS)
        add_generic(slow, twin, inputs, vectors, parameters)
    # A gradient that is zero but for rounding (a key's bias under a softmax) has no correct digits.
    noise = ROUNDING * max(expected.max() for expected in slow.values())
    wrong = [
        name
        for name, expected in slow.items()
        if not (fast[name] - expected).abs().max() <= TOLERANCE * expected.max() + noise
    ]
    if wrong:
        raise RuntimeError(
            f"the Fisher of {', '.join(wrong)} differs from plain autograd on {len(samples)} "
            "samples: the model uses them in a way that the engine misreads; please report it"
        )

"""How the Fisher engine takes the parameters of a network."""

from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.fisher.batched_backward import Plan, add_chunk, make_plan
from coin_hf.fisher.borrow import borrowed

K = 3
"""Classes of the networks in the tests of the engine."""


def tried(model: nn.Module, inputs: Any) -> Plan:
    """The plan for a model, after a chunk of all samples."""
    sums = {name: torch.zeros_like(value) for name, value in model.named_parameters()}

    def vectors(logits: Tensor, positions: Any) -> Tensor:
        return logits.new_ones(1, len(positions), K)

    with borrowed(model):
        plan = make_plan(model, inputs)
        add_chunk(sums, model, inputs, vectors, plan, block=1)
    return plan


def generic(model: nn.Module, inputs: Any) -> list[str]:
    """The parameters for which no rule was found to hold, on two samples or on all of them."""
    return list(tried(model, inputs).generic)

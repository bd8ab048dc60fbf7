"""Raw logits of a classifier, from whichever output type it returns."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, batches, fit_to
from coin_hf.networks.processes import ALONE, Processes


def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """Run `model` on one batch and return its raw logits (no softmax).

    Args:
        model: A classifier: timm models return a tensor, transformers models an output with
            `.logits`.
        inputs: A tensor of shape (B, ...), or a mapping of keyword arguments to tensors whose
            first axis is B (tokenised text).

    Returns:
        Logits of shape (B, K).

    Raises:
        TypeError: If the model returns neither a tensor nor an object with `.logits`.
        ValueError: If the logits do not have shape (B, K).
    """
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{type(model).__name__} returned {type(output).__name__}: "
            "expected a tensor of logits or an output with `.logits`; use a classification model"
        )
    if logits.dim() != 2:
        raise ValueError(
            f"{type(model).__name__} returned logits of shape {tuple(logits.shape)}, expected "
            "(batch, classes); use a classification model"
        )
    return logits


@torch.no_grad()
def logits_of(
    model: nn.Module, inputs: Inputs, *, batch_size: int, processes: Processes = ALONE
) -> Tensor:
    """Run a network on all inputs, the batches distributed over the processes.

    Args:
        model: A classifier in eval mode.
        inputs: Shape (P, ...), a tensor or a mapping of tensors.
        batch_size: Inputs per forward pass; the batches do not depend on the number of processes.
        processes: The processes that share the batches.

    Returns:
        Logits of shape (P, K) on the CPU, the same in every process.
    """
    numbered = processes.share(list(enumerate(batches(inputs, batch_size))))
    parts = [(number, call(model, fit_to(batch, model)).cpu()) for number, batch in numbered]
    parts = sorted(processes.gather(parts), key=lambda part: part[0])
    return torch.cat([logits for _, logits in parts])

"""Raw logits out of whatever a classifier returns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # coders need no processes to be imported
    from accelerate import Accelerator


def call(model: nn.Module, inputs: Any) -> Tensor:
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


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Move a tensor, or every tensor of a mapping, to `device`."""
    if isinstance(inputs, Mapping):
        return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    return inputs.to(device, non_blocking=True)


@torch.no_grad()
def logits_of(
    model: nn.Module, inputs: Tensor, *, batch_size: int, accelerator: "Accelerator | None" = None
) -> Tensor:
    """Run `model` over all inputs, the batches shared out among the processes.

    Args:
        model: A classifier in eval mode.
        inputs: Shape (P, ...).
        batch_size: Inputs in one forward pass; what a batch holds does not depend on the number
            of processes.
        accelerator: The processes; None for this one alone.

    Returns:
        Logits of shape (P, K) on the CPU, the same in every process.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(model.parameters()).device
    batches = list(enumerate(inputs.split(batch_size)))[rank::world]
    parts = [(number, call(model, to_device(batch, device)).cpu()) for number, batch in batches]
    if world > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    return torch.cat([logits for _, logits in sorted(parts, key=lambda part: part[0])])

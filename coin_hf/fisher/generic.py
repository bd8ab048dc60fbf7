"""The fallback: per-sample gradients of any parameters by plain autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coin_hf.fisher.borrow import refresh
from coin_hf.fisher.rules.norms import batch_norm
from coin_hf.fisher.tape import Tape
from coin_hf.networks.inputs import count, take
from coin_hf.networks.logits import call

Cotangents = Callable[[Tensor, Sequence[int]], Tensor]  # (logits, positions) -> (M, P, K)

BLOCK = 2**25  # gradient elements alive at once: 128 MiB in float32


def add_generic(
    sums: dict[str, Tensor],
    model: nn.Module,
    inputs: Any,
    cotangents: Cotangents,
    parameters: dict[str, nn.Parameter],
) -> None:
    """Add sum_l sum_m (d v_{m,l}^T f(x_l) / d theta)^2 for any use of any parameter.

    It takes one sample at a time, so it need not know where or how often a parameter is used. The M
    cotangents run as a batched backward pass, in blocks whose gradients fit in `BLOCK`.

    Args:
        sums: Name -> running sum, of the parameter's shape; changed in place.
        model: A borrowed model (see `borrow.borrowed`).
        inputs: P samples, a tensor or a dict of tensors with leading axis P.
        cotangents: (logits, positions in the chunk) -> cotangents of shape (M, len(positions), K).
        parameters: Name -> parameter to cover.
    """
    if not parameters:
        return
    names, leaves = list(parameters), list(parameters.values())
    block = max(1, BLOCK // sum(leaf.numel() for leaf in leaves))
    for position in range(count(inputs)):
        refresh(model)
        # Fused attention cannot be batched over cotangents; BatchNorm's rule is for the forward.
        tape = Tape({F.batch_norm: batch_norm}, {}, {}, 1, lambda name, shape: False)
        with sdpa_kernel(SDPBackend.MATH), tape:
            logits = call(model, take(inputs, slice(position, position + 1)))
        for vectors in cotangents(logits, [position]).split(block):
            for name, gradient in zip(names, batched_grad(logits, leaves, vectors), strict=True):
                sums[name] += gradient.to(sums[name].dtype).square().sum(0)


def batched_grad(logits: Tensor, leaves: Sequence[Tensor], vectors: Tensor) -> Sequence[Tensor]:
    """Return the gradients of v_m^T logits for a block of cotangents; the graph is kept.

    Args:
        logits: Shape (P, K).
        leaves: The tensors to differentiate with respect to.
        vectors: Shape (M, P, K).

    Returns:
        For each leaf a tensor (M, *leaf.shape), zero where the logits do not depend on it.

    Raises:
        OutOfMemoryError: If the block is too large.
    """

    def one(vector: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            logits, leaves, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    try:
        return torch.func.vmap(one)(vectors)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a custom autograd.Function without a vmap rule: one by one
        return [torch.stack(rows) for rows in zip(*map(one, vectors), strict=True)]

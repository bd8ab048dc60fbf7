"""How many samples and cotangents go through the network at once; the chunks they come in."""

import os
from collections.abc import Iterator, Sequence
from math import ceil, isqrt
from typing import Any

import torch

from coin_hf.fisher.batched_backward import Plan
from coin_hf.networks.inputs import take, to_device

CPU_GRADIENTS = 2**25
"""Bytes of gradients alive at once aimed at on a CPU: larger blocks only miss the caches. A
gradient counts as the geometric mean of the widest activation and the average one: by that measure
ResNet50, ViT, EfficientNet and ConvNeXt are all fastest at about this number."""
CPU_SAMPLES, DEVICE_SAMPLES = 32, 256
"""Samples of a chunk at most: from here on, larger products no longer run faster."""
WIDE = 64
"""Cotangents of one backward pass at most."""
ALIVE = 3
"""Gradients as large as the widest activation that a backward pass holds at once, about."""


def chunk_sizes(
    plan: Plan, samples: int, cotangents: int, *, batch_size: int | None, device: torch.device
) -> tuple[int, int]:
    """Choose the samples of a chunk and the cotangents of a backward pass.

    A chunk of P samples and M cotangents holds about P * activations + 3 * P * M * widest bytes.

    Args:
        plan: The network's plan, which says what a sample costs.
        samples: How many there are; they are spread evenly over the chunks.
        cotangents: M, of the whole estimate.
        batch_size: Samples of a chunk, if the caller has chosen.
        device: Where it runs.

    Returns:
        Samples of a chunk, cotangents of a backward pass.
    """
    budget = _free_bytes(device)
    gradients = ALIVE * plan.widest
    if batch_size is None:
        rows = min(cotangents, WIDE)
        most = min(samples, budget // (plan.activations + rows * gradients))
        if device.type == "cpu":
            typical = isqrt(plan.widest * plan.usual)
            most = min(most, CPU_SAMPLES, CPU_GRADIENTS // (rows * ALIVE * typical))
        most = max(1, min(most, DEVICE_SAMPLES))
        batch_size = ceil(samples / ceil(samples / most))
    left = max(0, budget - batch_size * plan.activations)
    return batch_size, max(1, min(cotangents, WIDE, left // (batch_size * gradients)))


def keep_freed_memory() -> None:
    """Let the heap of Linux's C library keep what a pass frees, until the pass needs it again.

    It gives freed memory back to the system at once, which clears every page anew at the next use.
    How much it keeps, it learns from the largest block that was freed: here is one of the largest
    that it learns from, 32 MiB, never touched. Elsewhere this does nothing. See mallopt(3),
    M_MMAP_THRESHOLD.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def chunks(
    inputs: Any, indices: Sequence[int], size: int, device: torch.device
) -> Iterator[tuple[Sequence[int], Any]]:
    """Cut samples into chunks on the device; on CUDA the next one travels during this one's work.

    Args:
        inputs: A tensor (P, ...) or a dict of them, anywhere.
        indices: The samples to take, in order.
        size: Samples of a chunk.
        device: Where they are needed.

    Yields:
        The chunk's indices and its samples.
    """
    parts = [indices[start : start + size] for start in range(0, len(indices), size)]
    if device.type != "cuda":
        for part in parts:
            yield part, to_device(take(inputs, list(part)), device)
        return
    side = torch.cuda.Stream(device)

    def send(part: Sequence[int]) -> Any:
        host = take(inputs, list(part))
        with torch.cuda.stream(side):
            return to_device(_pinned(host), device)

    coming = send(parts[0]) if parts else None
    for number, part in enumerate(parts):
        torch.cuda.current_stream(device).wait_stream(side)
        now = coming
        if number + 1 < len(parts):
            coming = send(parts[number + 1])
        yield part, now


def _pinned(batch: Any) -> Any:
    """Page-locked copies, which can be sent without stopping the device."""
    if isinstance(batch, dict):
        return {name: _pinned(value) for name, value in batch.items()}
    return batch if batch.is_cuda else batch.pin_memory()


def _free_bytes(device: torch.device) -> int:
    """Bytes that a chunk may take: a part of what is free, for others live there too."""
    if device.type == "cuda":
        return int(0.5 * torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(0.25 * torch.mps.recommended_max_memory())
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (ValueError, OSError):  # not every system tells
        return 2**29

"""Choose how many samples and cotangents run at once, and split the samples into chunks."""

from collections.abc import Iterator, Sequence
from math import ceil, isqrt
from typing import Any

import torch

from coin_hf.fisher.batched_backward import Plan
from coin_hf.networks.inputs import take, to_device
from coin_hf.networks.memory import spare_bytes

CPU_GRADIENTS = 2**25
"""Target for the bytes of gradients alive at once on a CPU: larger blocks only miss the caches. A
gradient counts as the geometric mean of the widest activation and the average one: by that measure
ResNet50, ViT, EfficientNet and ConvNeXt are all fastest near this value."""
CPU_SAMPLES, DEVICE_SAMPLES = 32, 256
"""Most samples per chunk: beyond this, larger products run no faster."""
WIDE = 64
"""Most cotangents per backward pass."""
ALIVE = 3
"""Gradients of the widest activation's size that a backward pass holds at once, roughly."""


def chunk_sizes(
    plan: Plan, samples: int, cotangents: int, *, batch_size: int | None, device: torch.device
) -> tuple[int, int]:
    """Choose the samples per chunk and the cotangents per backward pass.

    A chunk of P samples and M cotangents holds about P * activations + 3 * P * M * widest bytes.

    Args:
        plan: The network's plan, with the memory cost of a sample.
        samples: Number of samples, spread evenly over the chunks.
        cotangents: M, of the whole estimate.
        batch_size: Samples per chunk, if the caller has chosen.
        device: The device of the computation.

    Returns:
        Samples per chunk, cotangents per backward pass.
    """
    budget = spare_bytes(device)
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
    """Make Linux's C library keep the memory that a pass frees, for its next use.

    By default it returns freed memory to the system at once, which clears every page anew at the
    next use. How much it keeps adapts to the largest block freed so far: this frees one of the
    largest size that counts, 32 MiB, never touched. Elsewhere this does nothing. See mallopt(3),
    M_MMAP_THRESHOLD.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def chunks(
    inputs: Any, indices: Sequence[int], size: int, device: torch.device
) -> Iterator[tuple[Sequence[int], Any]]:
    """Split samples into chunks on the device; on CUDA the next is copied while this one runs.

    Args:
        inputs: A tensor (P, ...) or a dict of them, on any device.
        indices: The samples to take, in order.
        size: Samples per chunk.
        device: The target device.

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
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        now = coming
        _used_by(now, current)
        if number + 1 < len(parts):
            coming = send(parts[number + 1])
        yield part, now


def _used_by(batch: Any, stream: torch.cuda.Stream) -> None:
    """Keep memory that was taken on another stream until this one's work on it is done."""
    for value in batch.values() if isinstance(batch, dict) else [batch]:
        value.record_stream(stream)


def _pinned(batch: Any) -> Any:
    """Return page-locked copies, which can be sent without stalling the device."""
    if isinstance(batch, dict):
        return {name: _pinned(value) for name, value in batch.items()}
    return batch if batch.is_cuda else batch.pin_memory()

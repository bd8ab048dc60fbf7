"""Say how much memory a computation may take."""

import ctypes
import os

import psutil
import torch

from coin_hf.networks.cgroup import room_in_cgroups


def spare_bytes(device: torch.device) -> int:
    """Return the bytes that a computation may take: a part of what is free, which others share.

    On a host, what the machine can give without swapping, or a container's limit leaves.

    Args:
        device: Where it computes.

    Returns:
        Half of what is free on CUDA, a quarter elsewhere.
    """
    if device.type == "cuda":
        return int(0.5 * torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(0.25 * torch.mps.recommended_max_memory())
    limit = room_in_cgroups()
    available = psutil.virtual_memory().available  # what caches hold counts: it is given back
    return (available if limit is None else min(available, limit)) // 4


def release_freed_memory() -> None:
    """Give what was freed back to the system, where the C library keeps it (Linux).

    It keeps freed memory by thread: that of many threads, each of which runs a little, adds up.
    See malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)

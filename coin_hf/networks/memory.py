"""Say how much memory a computation may take."""

import os
from pathlib import Path

import torch


def spare_bytes(device: torch.device) -> int:
    """Return the bytes that a computation may take: a part of what is free, which others share.

    Args:
        device: Where it computes.

    Returns:
        Half of what is free on CUDA, a quarter of what the system can give elsewhere.
    """
    if device.type == "cuda":
        return int(0.5 * torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(0.25 * torch.mps.recommended_max_memory())
    return _available() // 4


def _available() -> int:
    """Return the bytes of memory that the system can give, cached files counted as free."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not every system reports it
        return 2**31

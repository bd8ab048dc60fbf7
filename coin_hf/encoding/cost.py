"""How much memory a step takes at its peak."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Peak:
    """What `watch` found."""

    bytes: int | None = None
    """At most in use during the step: on CUDA what torch allocated there, else the memory of this
    process, everything it held before included; None where the system does not tell."""


@contextmanager
def watch(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of a step.

    Args:
        device: Where the step computes.

    Yields:
        The peak, filled in at the end.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    began = _begin_anew()
    yield peak
    peak.bytes = _high_water() if began else None


def _begin_anew() -> bool:
    """Let Linux forget this process's high-water mark; say whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return None

"""Measure a step's cost: wall time, peak memory, and the machine it runs on."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coin_hf.encoding.context import RunContext
from coin_hf.experts.expert import Expert


@dataclass
class Peak:
    """The peak memory that `watch` measured."""

    bytes: int | None = None
    """Peak memory in use during the step: on CUDA torch's allocations, else the memory of this
    process, including what it held before; None if the system does not report it."""


@contextmanager
def watch(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of a step.

    Args:
        device: The step's device.

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
    """Reset this process's high-water mark on Linux; return whether that worked."""
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


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Record the wall time of a step.

    Args:
        seconds: Where it is recorded.
        step: The step's name there.

    Yields:
        Nothing.
    """
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 2)


def machine(run: RunContext, experts: Sequence[Expert]) -> dict[str, Any]:
    """Describe what a run ran on.

    Args:
        run: The run.
        experts: The experts, in whose dtype all networks run.

    Returns:
        `device`, `processes` and `precision`, as `result.json` holds them.
    """
    device = run.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    dtypes = {value.dtype for value in experts[0].parameters.values()}
    precision = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return {"device": name, "processes": run.processes.world, "precision": precision}

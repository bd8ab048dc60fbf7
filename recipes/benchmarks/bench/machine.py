"""What a number was measured on: never a name or a path of the machine."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

TF32_PEAK = {"H100": 494.7, "H200": 494.7, "A100": 156.0, "L40S": 183.2, "A10G": 35.0}
"""Dense TF32 TFLOP/s by the maker's data sheets, by a part of the device's name."""


def describe(device: str, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Describe hardware, threads and versions.

    Args:
        device: `cpu` or `cuda`.
        packages: Distributions whose versions are told beside the project's own.

    Returns:
        Plain data.
    """
    found = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory() / 2**30),
        "system": platform.system(),
        "versions": versions(["coin-hf", "torch", "timm", *packages]),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        if installed(name):
            found[name] = version(name)
    return found


def installed(package: str | None) -> bool:
    """Whether a distribution is there; None is always."""
    try:
        return package is None or bool(version(package))
    except PackageNotFoundError:
        return False


def sentence(machine: dict[str, Any]) -> str:
    """One sentence for the table's head."""
    gpu = f"{machine['gpu']}, host " if "gpu" in machine else ""
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {threads}, "
        f"{machine['memory_gib']} GiB, {machine['system']}; {packages}"
    )


def tf32_peak(given: float | None) -> float | None:
    """TFLOP/s of the CUDA device in TF32, dense; as given, or by its name; None if not known."""
    if given is not None:
        return given
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in TF32_PEAK.items() if part in name), None)


def peak_bytes(device: str) -> int:
    """The most memory this process held: resident, or allocated on a CUDA device."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a fresh process can be that of the process which started it
        lines = status.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

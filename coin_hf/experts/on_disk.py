"""Keep tensors in temporary files that are mapped into memory.

A mapped tensor is read like any other. The system reads its pages from the file when they are used
and drops them when memory is short, so that N networks take the memory of the one that runs.
"""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from coin_hf.experts.expert import Expert

ALIGNED = 64
"""Bytes to which a tensor is aligned, as torch's own are: kernels round otherwise elsewhere."""


def keep_on_disk(expert: Expert) -> None:
    """Move the parameters of a network, in place, to a temporary file that is mapped.

    Args:
        expert: The expert; its parameters remain the same objects.
    """
    values = mapped(expert.parameters, f"the weights of expert '{expert.name}'")
    for name, parameter in expert.model.named_parameters():
        parameter.data = values[name]


def mapped(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Write tensors to a temporary file and map it; its space is given back with the last of them.

    Tensors on another device than the CPU stay there. Changing a mapped tensor changes no file: the
    changed pages are then held in memory.

    Args:
        tensors: Tensors by name.
        what: What they are, for the warning.

    Returns:
        Equal tensors by name; the given ones, with a warning, where the disk has no room.
    """
    host = {name: value for name, value in tensors.items() if value.device.type == "cpu"}
    size = sum(value.nbytes for value in host.values())
    try:
        _check_room(size)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "tensors"
            places = _write(file, host)
            if not file.stat().st_size:
                return dict(tensors)
            memory = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    except OSError as error:
        warnings.warn(
            f"{what} ({size / 2**30:.1f} GiB) stay in memory, as {tempfile.gettempdir()} does not "
            f"take them ({error}): set TMPDIR to a larger disk",
            stacklevel=3,
        )
        return dict(tensors)
    # The mapping outlives the name. Each tensor has a storage of its own, as parameters have.
    return {
        name: value
        if name not in places
        else torch.empty(0, dtype=value.dtype).set_(  # type: ignore[call-overload]
            memory[places[name] : places[name] + value.nbytes], 0, value.shape
        )
        for name, value in tensors.items()
    }


def _check_room(size: int) -> None:
    """Refuse to fill more than half of what a disk has left."""
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if size > room // 2:
        raise OSError(f"only {room / 2**30:.1f} GiB of room")


def _write(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write tensors one after the other; return where each begins."""
    places = {}
    with file.open("wb") as stream:
        for name, value in tensors.items():
            stream.write(bytes(-stream.tell() % ALIGNED))
            places[name] = stream.tell()
            flat = value.contiguous().flatten()
            stream.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return places

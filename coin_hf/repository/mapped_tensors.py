"""Memory-map safetensors files: reading part of a tensor reads that part alone.

A safetensors file holds the length of its header (8 bytes), the header (JSON: name, dtype, shape
and offsets of each tensor), and the tensors' bytes one after the other.
"""

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coin_hf.errors import InputError
from coin_hf.records.coin import ClassOrder

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names for the dtypes of checkpoints."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Offset of its bytes in the file."""
    count: int
    """Number of elements."""
    mapped: mmap.mmap


class Tensors:
    """The memory-mapped tensors of safetensors files."""

    def __init__(self, files: Sequence[Path], name: str, order: ClassOrder | None = None) -> None:
        """Map files and check their headers, without reading a tensor.

        Args:
            files: The files.
            name: Their owner's name in messages.
            order: The order of the classes in the files, if they are read in another: the rows of
                the head's tensors are then read permuted.

        Raises:
            InputError: If one is missing, damaged, or holds an unsupported dtype.
        """
        self.name = name
        self._own = {} if order is None else dict.fromkeys(order.tensors, order.own)
        """Row in the file for each row read, by tensor."""
        self.headers: dict[Path, bytes] = {}
        """The first bytes of each file, up to its first tensor."""
        self.entries: dict[str, Entry] = {}
        """All tensors by name, in the order of their bytes."""
        if not files:
            raise InputError(f"{name} holds no model.safetensors: give a safetensors checkpoint")
        for file in files:
            try:
                with safe_open(file, framework="pt"):
                    pass
                self._map(file)
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{name}: {file.name} is missing, damaged or cut short ({error}): download or "
                    "save it again"
                ) from error
        if lacking := self._own.keys() - self.entries:
            raise InputError(
                f"{name} has no tensor '{min(lacking)}', the head whose rows are permuted: encode "
                "from a recipe instead"
            )

    def _map(self, file: Path) -> None:
        with file.open("rb") as stream:
            # torch wants writable memory, which a private map is; nothing here writes to it.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        size = 8 + int.from_bytes(mapped[:8], "little")
        header: dict[str, Any] = json.loads(mapped[8:size])
        header.pop("__metadata__", None)
        self.headers[file] = mapped[:size]
        for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if said["dtype"] not in DTYPES:
                raise InputError(
                    f"{self.name}: '{name}' has type {said['dtype']}, which cannot be coded; known "
                    f"are {', '.join(DTYPES)}"
                )
            dtype, (begin, end) = DTYPES[said["dtype"]], said["data_offsets"]
            count = (end - begin) // dtype.itemsize
            self.entries[name] = Entry(dtype, tuple(said["shape"]), size + begin, count, mapped)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return some elements of a tensor, flat, sharing memory with the mapped file if in order.

        Args:
            name: The tensor.
            start: First element.
            stop: One past the last element, greater than `start`.

        Returns:
            Shape (stop - start,).
        """
        entry = self.entries[name]
        if name in self._own:
            width = entry.count // entry.shape[0]
            first, last = start // width, -(-stop // width)  # the rows that hold them
            rows = self._flat(entry, 0, entry.count).view(-1, width)[self._own[name][first:last]]
            return rows.flatten()[start - first * width : stop - first * width]
        return self._flat(entry, start, stop)

    def _flat(self, entry: Entry, start: int, stop: int) -> Tensor:
        place = entry.begin + start * entry.dtype.itemsize
        return torch.frombuffer(entry.mapped, dtype=entry.dtype, count=stop - start, offset=place)


def weights_in(folder: Path, name: str, order: ClassOrder | None = None) -> Tensors:
    """Map the weights of a checkpoint's folder.

    Args:
        folder: Folder with `model.safetensors`, or several `model-*.safetensors`.
        name: Its name in messages.
        order: The order of the classes in the files, if they are read in another.

    Returns:
        Its tensors.

    Raises:
        InputError: If there are none, or one is damaged.
    """
    return Tensors(sorted(folder.glob("model*.safetensors")), name, order)

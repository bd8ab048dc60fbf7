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
from coin_hf.networks.class_rows import spread
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
            order: The rows of the classes, if they are not read as in the files: rows of other
                classes are read as zeros.

        Raises:
            InputError: If one is missing, damaged, or holds an unsupported dtype.
        """
        self.name = name
        self._order = order
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
        if order is not None:
            self._check_head(order)

    def _check_head(self, order: ClassOrder) -> None:
        for head in order.tensors:
            if head not in self.entries or self.entries[head].shape[:1] != (len(order.rows),):
                raise InputError(
                    f"{self.name} has no tensor '{head}' of {len(order.rows)} classes, the head "
                    "whose rows are placed: encode from a recipe instead"
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
        order = self._order
        return {
            name: (order.count, *entry.shape[1:])
            if order and name in order.tensors
            else entry.shape
            for name, entry in self.entries.items()
        }

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
        if self._order is None or name not in self._order.tensors:
            return self._flat(entry, start, stop)
        width = entry.count // entry.shape[0]
        first, last = start // width, -(-stop // width)  # the rows that hold them
        own = [k for k, row in enumerate(self._order.rows) if first <= row < last]
        rows = [self._order.rows[k] - first for k in own]
        held = self._flat(entry, 0, entry.count).view(-1, width)[own]
        return spread(held, rows, last - first).flatten()[
            start - first * width : stop - first * width
        ]

    def _flat(self, entry: Entry, start: int, stop: int) -> Tensor:
        place = entry.begin + start * entry.dtype.itemsize
        return torch.frombuffer(entry.mapped, dtype=entry.dtype, count=stop - start, offset=place)


def weights_in(folder: Path, name: str, order: ClassOrder | None = None) -> Tensors:
    """Map the weights of a checkpoint's folder.

    Args:
        folder: Folder with `model.safetensors`, or several `model-*.safetensors`.
        name: Its name in messages.
        order: The rows of the classes, if they are not read as in the files.

    Returns:
        Its tensors.

    Raises:
        InputError: If there are none, or one is damaged.
    """
    return Tensors(sorted(folder.glob("model*.safetensors")), name, order)

"""Coded tensors written chunk by chunk from mapped files: no network is ever held in memory.

A safetensors file is the length of its header (8 bytes), the header (JSON: name, dtype, shape and
offsets of each tensor), and the tensors' bytes one after the other. It can be read through a memory
map and written front to back.
"""

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coin_hf.coders import average_buffers, fisher_average
from coin_hf.erasure.betas import Rows
from coin_hf.errors import InputError
from coin_hf.hub.layout import coded_folder

CHUNK = 1 << 16
"""Entries coded at once: all that is held of each network, and small enough for a core's cache."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What safetensors calls the types that checkpoints hold."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Where its bytes start in the file."""
    count: int
    """How many entries it has."""
    mapped: mmap.mmap


class Tensors:
    """The tensors of safetensors files, mapped: reading a part reads that part alone."""

    def __init__(self, files: Sequence[Path], name: str) -> None:
        """Map files; their headers are checked, no tensor is read.

        Args:
            files: The files.
            name: What messages call their owner.

        Raises:
            InputError: If one is missing, damaged, or holds a type this cannot code.
        """
        self.name = name
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

    def _map(self, file: Path) -> None:
        with file.open("rb") as stream:
            # A private map may be written to, which torch asks for; nothing here does.
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
        """Return some entries of a tensor, flat, sharing memory with the file's map.

        Args:
            name: The tensor.
            start: First entry.
            stop: Entry after the last one, more than `start`.

        Returns:
            Shape (stop - start,).
        """
        entry = self.entries[name]
        place = entry.begin + start * entry.dtype.itemsize
        return torch.frombuffer(entry.mapped, dtype=entry.dtype, count=stop - start, offset=place)


def weights_in(folder: Path, name: str) -> Tensors:
    """Map the weights of a checkpoint's folder.

    Args:
        folder: Folder with `model.safetensors`, or several `model-*.safetensors`.
        name: What messages call it.

    Returns:
        Its tensors.

    Raises:
        InputError: If there are none, or one is damaged.
    """
    return Tensors(sorted(folder.glob("model*.safetensors")), name)


def check_same_tensors(experts: Sequence[Tensors], coded: Tensors) -> None:
    """Check that experts hold the tensors that the coded model has, by name and shape.

    Args:
        experts: The experts' checkpoints.
        coded: The coded model's.

    Raises:
        InputError: If one differs; its differences are listed.
    """
    for expert in experts:
        faults = [f"missing '{name}'" for name in sorted(coded.shapes.keys() - expert.shapes)]
        faults += [f"unexpected '{name}'" for name in sorted(expert.shapes.keys() - coded.shapes)]
        faults += [
            f"'{name}' has shape {expert.shapes[name]}, expected {shape}"
            for name, shape in coded.shapes.items()
            if name in expert.shapes and expert.shapes[name] != shape
        ]
        if faults:
            raise InputError(
                f"{expert.name} does not store the tensors of the coded model: "
                f"{'; '.join(faults[:10])}; encode from a recipe instead"
            )


def write_coded(
    folder: Path,
    coded: Tensors,
    experts: Sequence[Tensors],
    fishers: Sequence[Tensors],
    tied: Mapping[str, str],
    rows: Rows,
    lam: float,
) -> None:
    """Code experts into files of the same form as an existing coded model's.

    Every entry is computed as `encode` computes it, by the same functions of `coin_hf.coders`, so
    that the same betas, lambda and Fishers give the same bits.

    Args:
        folder: Where the files go: `model*.safetensors` for the first coded model, those of the
            others in their subfolders.
        coded: A coded model, for names, types, shapes and order.
        experts: The N experts.
        fishers: Their Fishers.
        tied: Names of parameters that are another one's tensor, with that one's name.
        rows: Coding weights, shape (M, N).
        lam: The penalty.
    """
    for file, header in coded.headers.items():
        names = json.loads(header[8:])
        mine = {name: entry for name, entry in coded.entries.items() if name in names}
        with ExitStack() as stack:
            streams = []
            for c in range(len(rows)):
                place = folder / coded_folder(c)
                place.mkdir(exist_ok=True)
                streams.append(stack.enter_context((place / file.name).open("wb")))
            for stream in streams:
                stream.write(header)
            for name, entry in mine.items():
                for chunks in _coded_chunks(name, entry, experts, fishers, tied, rows, lam):
                    for stream, chunk in zip(streams, chunks, strict=True):
                        stream.write(chunk.view(torch.uint8).numpy().data)


def _coded_chunks(
    name: str,
    entry: Entry,
    experts: Sequence[Tensors],
    fishers: Sequence[Tensors],
    tied: Mapping[str, str],
    rows: Rows,
    lam: float,
) -> Iterator[list[Tensor]]:
    """Code one tensor; yield its chunks in order, one for each coded model at a time."""
    weighed = tied.get(name, name)
    for start in range(0, entry.count, CHUNK):
        stop = min(start + CHUNK, entry.count)
        thetas = [{name: expert.read(name, start, stop).to(entry.dtype)} for expert in experts]
        if weighed in fishers[0].entries:
            parts = [{name: fisher.read(weighed, start, stop)} for fisher in fishers]
            yield [fisher_average(thetas, parts, betas=row, lam=lam)[name] for row in rows]
        else:  # a buffer, such as BatchNorm's statistics
            yield [average_buffers(thetas, betas=row)[name] for row in rows]

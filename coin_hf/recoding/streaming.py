"""Code experts chunk by chunk from mapped files, without holding a network in memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from coin_hf.coders import average_buffers, fisher_average
from coin_hf.erasure.betas import Rows
from coin_hf.errors import InputError
from coin_hf.hub.layout import coded_folder
from coin_hf.repository.mapped_tensors import Entry, Tensors

CHUNK = 1 << 16
"""Elements coded at once: all that is held of each network, and fits a core's cache."""


def check_same_tensors(experts: Sequence[Tensors], coded: Tensors) -> None:
    """Check that the experts' tensors match the coded model's in name and shape.

    Args:
        experts: The experts' checkpoints.
        coded: The coded model's checkpoint.

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
    """Code experts into files in the format of an existing coded model's.

    Every element is computed by the same functions of `coin_hf.coders` as in `encode`, so that the
    same betas, lambda and Fishers give the same bits.

    Args:
        folder: Where the files go: `model*.safetensors` for the first coded model, those of the
            others in their subfolders.
        coded: A coded model, for names, types, shapes and order.
        experts: The N experts.
        fishers: Their Fishers.
        tied: Tied parameters by name, with the name they are tied to.
        rows: Coding weights, shape (M, N).
        lam: The penalty.

    Raises:
        InputError: If a coded number would not be finite.
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
                    if not all(map(finite, chunks)):
                        raise InputError(
                            f"re-coding would write numbers that are not finite in '{name}': an "
                            "expert or its Fisher holds some, or lambda is too large"
                        )
                    for stream, chunk in zip(streams, chunks, strict=True):
                        stream.write(chunk.view(torch.uint8).numpy().data)


def finite(values: Tensor) -> bool:
    """Say whether all values are finite.

    Args:
        values: Any tensor.

    Returns:
        True for integers, and where no value is NaN or infinite.
    """
    return not values.is_floating_point() or bool(values.isfinite().all())


def _coded_chunks(
    name: str,
    entry: Entry,
    experts: Sequence[Tensors],
    fishers: Sequence[Tensors],
    tied: Mapping[str, str],
    rows: Rows,
    lam: float,
) -> Iterator[list[Tensor]]:
    """Code one tensor; yield its chunks in order, each for all coded models."""
    weighed = tied.get(name, name)
    for start in range(0, entry.count, CHUNK):
        stop = min(start + CHUNK, entry.count)
        thetas = [{name: expert.read(name, start, stop).to(entry.dtype)} for expert in experts]
        if weighed in fishers[0].entries:
            parts = [{name: fisher.read(weighed, start, stop)} for fisher in fishers]
            yield [fisher_average(thetas, parts, betas=row, lam=lam)[name] for row in rows]
        else:  # a buffer, such as BatchNorm's statistics
            yield [average_buffers(thetas, betas=row)[name] for row in rows]

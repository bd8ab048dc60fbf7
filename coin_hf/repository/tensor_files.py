"""Write safetensors files that are equal, byte for byte, where tensors and metadata are."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, values: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, its metadata in the order of their keys.

    safetensors writes metadata in random order. They are reordered within the header, which keeps
    its length, so that the tensors keep their place.

    Args:
        path: The file.
        values: The tensors by name.
        metadata: Strings by key; at least one.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    save_file(held, path, metadata=dict(metadata))
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            stream.seek(8)
            stream.write(text.ljust(size))

"""Seeded damage to files: bytes flipped, cut and inserted; JSON values replaced by hostile ones."""

import copy
import json
from typing import Any

import numpy as np

HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 10**6, 10**9, 10**30, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "x" * 10_000, "../../x", "/etc/passwd", "\u0000", "\ud800", "a\nb",
    "<b>", [], {}, [[]], [None], {"a": {}}, ["x"] * 1000,
]  # fmt: skip
"""Values that a file should not hold, or not there."""


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut or insert some bytes, more often near the start, where headers are."""
    data = bytearray(content)
    kind = rng.integers(5)
    for _ in range(int(rng.integers(1, 6))):
        end = len(data) if rng.integers(2) else min(len(data), 400)
        if end:
            data[rng.integers(end)] = rng.integers(256)
    if kind == 0:
        data = data[: rng.integers(len(data) + 1)]
    elif kind == 1:
        at = rng.integers(len(data) + 1)
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    return bytes(data)


def damaged_json(data: Any, rng: np.random.Generator) -> bytes:
    """Replace, remove, move or nest one to three values of a JSON document."""
    made = copy.deepcopy(data)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(made))
        if not places:
            break
        holder, key = places[rng.integers(len(places))]
        kind = rng.integers(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, name = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[name])
        elif kind == 2 and isinstance(holder, dict):
            holder[str(HOSTILE[rng.integers(16, len(HOSTILE))])[:50]] = holder.pop(key)
        elif kind == 3:
            holder[key] = _nested(holder[key], int(rng.choice([3, 100, 5000])))
        else:
            holder[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
    return _dumped(made)


class Nested:
    """A value within many lists, which `json` would not write for its depth."""

    def __init__(self, value: Any, depth: int) -> None:
        self.value, self.depth = value, depth


def _nested(value: Any, depth: int) -> Any:
    return Nested(value, depth) if not isinstance(value, Nested) else value


def _places(data: Any) -> Any:
    """All (holder, key) pairs of a document."""
    entries = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(entries):
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _dumped(data: Any) -> bytes:
    if isinstance(data, Nested):
        return b"[" * data.depth + _dumped(data.value) + b"]" * data.depth
    if isinstance(data, dict):
        entries = (json.dumps(str(k)).encode() + b": " + _dumped(v) for k, v in data.items())
        return b"{" + b", ".join(entries) + b"}"
    if isinstance(data, list):
        return b"[" + b", ".join(map(_dumped, data)) + b"]"
    return json.dumps(data).encode("utf-8", "surrogatepass")

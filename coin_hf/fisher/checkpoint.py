"""A Fisher half done: what one process has summed up so far, and who keeps it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class Partial:
    """The sums of one process over its first `done` samples."""

    done: int
    batch_size: int
    """Samples of a chunk; going on with another size would round differently."""
    block: int
    """Cotangents of a backward pass, for the same reason."""
    sums: dict[str, Tensor]
    """Name -> running sum of squares, of the parameter's shape."""


class Checkpoint(Protocol):
    """Keeps the partial sums of one process, so that a run can go on after it was stopped."""

    def load(self) -> Partial | None:
        """Return what was kept, or None to begin."""

    def save(self, partial: Partial, *, final: bool) -> None:
        """Take notice of a finished chunk; the last one is `final`."""

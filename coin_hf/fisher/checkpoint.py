"""A partial Fisher: the sums of one process so far, and the interface that stores them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class Partial:
    """The sums of one process over its first `done` samples."""

    done: int
    batch_size: int
    """Samples per chunk; resuming with another size would round differently."""
    block: int
    """Cotangents per backward pass, for the same reason."""
    sums: dict[str, Tensor]
    """Name -> running sum of squares, of the parameter's shape."""


class Checkpoint(Protocol):
    """Stores the partial sums of one process, so that a stopped run can resume."""

    def load(self) -> Partial | None:
        """Return the stored sums, or None to start anew."""

    def save(self, partial: Partial, *, final: bool) -> None:
        """Record a finished chunk; the last one is `final`."""

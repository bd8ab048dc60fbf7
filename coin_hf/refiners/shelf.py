"""Keep tensors for later: in memory up to a limit, the others in a scratch file."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Scratch(Protocol):
    """Bytes by their place, on a disk."""

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes."""

    def read(self, data: memoryview, offset: int) -> None:
        """Fill a view with bytes that were written."""

    def close(self) -> None:
        """Give the disk's space back."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """What gives a tensor back."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    bytes: int
    kept: Tensor | None
    """The tensor, if it is in memory."""
    offset: int = 0
    """Where it lies in the file, if not."""


class Shelf:
    """Tensors that wait, within a limit of host memory."""

    def __init__(self, memory: int, scratch: Callable[[], Scratch] | None) -> None:
        """Open a shelf.

        Args:
            memory: The bytes of tensors to hold in host memory.
            scratch: Opens the file for the others, when one is needed; None to hold all in memory.
        """
        self._room, self._open = memory, scratch
        self.held = 0
        """Bytes in host memory now."""
        self._file: Scratch | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # places in the file, by their size

    def put(self, value: Tensor) -> Ticket:
        """Lay a tensor down; in host memory it is the tensor itself, not a copy, that waits.

        Args:
            value: Any tensor, on any device.

        Returns:
            The ticket, for `take`.
        """
        size = value.numel() * value.element_size()
        host = value.detach().cpu()
        if size <= self._room or self._open is None:
            self._room -= size
            self.held += size
            return Ticket(value.shape, value.dtype, value.device, size, host)
        self._file = self._file or self._open()
        places = self._free.get(size)
        offset = places.pop() if places else self._end
        self._end = max(self._end, offset + size)
        host = host.contiguous()
        self._file.write(_bytes_of(host), offset)
        return Ticket(value.shape, value.dtype, value.device, size, None, offset)

    def take(self, ticket: Ticket) -> Tensor:
        """Take a tensor off the shelf; its ticket is void then.

        Args:
            ticket: What `put` gave.

        Returns:
            The tensor, on its device.
        """
        found = self.read(ticket)
        if ticket.kept is not None:
            self._room += ticket.bytes
            self.held -= ticket.bytes
        else:
            self._free.setdefault(ticket.bytes, []).append(ticket.offset)
        return found

    def read(self, ticket: Ticket) -> Tensor:
        """Return a tensor and leave it on the shelf.

        Args:
            ticket: What `put` gave.

        Returns:
            The tensor, on its device; not to be changed.
        """
        if ticket.kept is not None:
            return ticket.kept.to(ticket.device)
        found = torch.empty(ticket.shape, dtype=ticket.dtype)
        if self._file is not None:
            self._file.read(_bytes_of(found), ticket.offset)
        return found.to(ticket.device)

    def close(self) -> None:
        """Drop the file and what lies in it."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "Shelf":
        """Use the shelf in a `with` block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what is left on it."""
        self.close()


def _bytes_of(value: Tensor) -> memoryview:
    """View the memory of a contiguous tensor on the host, which must outlive the view.

    By its address: a view by NumPy would fix the storage's size for good.
    """
    size = value.numel() * value.element_size()
    if not size:
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * size).from_address(value.data_ptr())).cast("B")

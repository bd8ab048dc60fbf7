"""Keep tensors for later: in memory up to a limit, the others in a temporary file."""

import ctypes
import errno
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coin_hf.refiners.lockstep import Unsuitable


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
    """Tensors that wait, within a limit of host memory; the file has no name and ends with it."""

    def __init__(self, memory: int) -> None:
        """Open a shelf; no file is made before one is needed.

        Args:
            memory: The bytes of tensors to hold in host memory.
        """
        self._room = memory
        self._file: Any = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # places in the file, by their size

    def put(self, value: Tensor) -> Ticket:
        """Lay a tensor down; in host memory it is the tensor itself, not a copy, that waits.

        Args:
            value: Any tensor, on any device.

        Returns:
            The ticket, for `take`.

        Raises:
            Unsuitable: If the disk of temporary files is full.
        """
        size = value.numel() * value.element_size()
        host = value.detach().cpu()
        if size <= self._room:
            self._room -= size
            return Ticket(value.shape, value.dtype, value.device, size, host)
        places = self._free.get(size)
        offset = places.pop() if places else self._end
        self._end = max(self._end, offset + size)
        host = host.contiguous()
        self._write(_bytes_of(host).cast("B"), offset)
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
        view, place = _bytes_of(found).cast("B"), ticket.offset
        while view:
            read = os.preadv(self._file.fileno(), [view], place)
            view, place = view[read:], place + read
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

    def _write(self, view: memoryview, offset: int) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise Unsuitable(
                f"{tempfile.gettempdir()} has no room for the activations that wait there, "
                f"{self._end / 2**30:.1f} GiB so far: free some, set TMPDIR to another disk, or "
                "raise `memory` so that more of them stay in memory"
            ) from error


def _bytes_of(value: Tensor) -> memoryview:
    """View the memory of a contiguous tensor on the host, which must outlive the view.

    By its address: a view by NumPy would fix the storage's size for good.
    """
    size = value.numel() * value.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(value.data_ptr()) if size else b"")

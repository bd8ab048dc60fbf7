"""Let many passes of one network wait within a limit of memory.

A pass that waits at a map holds tensors in the frames of its thread: activations that later layers
add, the map's input. While all passes' tensors fit they stay where they are. Beyond that the
memory behind a waiting pass's tensors is moved to the shelf, and the tensors, which its frames go
on holding, are empty until it goes on.
"""

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, fit_to, repeat_first
from coin_hf.networks.memory import release_freed_memory
from coin_hf.refiners.lockstep import Pass, passes
from coin_hf.refiners.shelf import Shelf, Ticket
from coin_hf.refiners.tracking import Tracker, storages_of


@torch.no_grad()
def waiting_bytes(model: nn.Module, sample: Inputs) -> int:
    """Measure the most that a pass holds while it waits at a map.

    Args:
        model: A classifier in eval mode.
        sample: One sample or more, shape (P, ...); the first is used.

    Returns:
        Bytes per sample.
    """
    batch, tracker = repeat_first(fit_to(sample, model), 2), Tracker(storages_of(model))
    most = 0
    with passes([Pass(model, batch, tracker)]) as [only]:
        stop = only.go()
        while stop is not None:
            most = max(most, sum(storage.nbytes() for storage in tracker.alive()))
            stop = only.go(stop())
    return -(-most // 2)


class Parking:
    """Passes of one network that wait, within a limit of memory."""

    def __init__(self, model: nn.Module, shelf: Shelf, room: int) -> None:
        """Prepare the place.

        Args:
            model: The network of all passes.
            shelf: Where what does not fit is laid.
            room: Bytes on the network's device that waiting passes may hold together.
        """
        self._own, self._shelf, self._room = storages_of(model), shelf, room
        self._waiting: dict[Pass, int] = {}  # bytes that a waiting pass holds in place
        self._moved: dict[Pass, list[int]] = {}
        self._tickets: dict[int, tuple[torch.UntypedStorage, Ticket]] = {}

    def tracker(self) -> Tracker:
        """Make the tracker of one pass."""
        return Tracker(self._own, self._restore)

    def park(self, each: Pass) -> None:
        """Let a pass wait.

        Args:
            each: A pass that has stopped at a map, made with a `tracker`.
        """
        held = list(each.tracker.alive()) if each.tracker is not None else []
        size = sum(storage.nbytes() for storage in held)
        if size <= self._room:
            self._room -= size
            self._waiting[each] = size
            return
        self._moved[each] = [storage._cdata for storage in held]
        for storage in held:
            self._tickets[storage._cdata] = storage, self._shelf.put(_whole(storage))
            storage.resize_(0)
        release_freed_memory()

    def fetch(self, each: Pass) -> None:
        """Give a pass what it held, before it goes on.

        Args:
            each: A pass; nothing happens if it does not wait.
        """
        self._room += self._waiting.pop(each, 0)
        for key in self._moved.pop(each, []):
            if key in self._tickets:
                self._restore(self._tickets[key][0])

    def _restore(self, storage: torch.UntypedStorage) -> None:
        kept, ticket = self._tickets.pop(storage._cdata)
        kept.resize_(ticket.bytes)
        _whole(kept).copy_(self._shelf.take(ticket))


def _whole(storage: torch.UntypedStorage) -> Tensor:
    """View a storage as its bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

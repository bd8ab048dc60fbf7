"""Know which tensors of a computation are still alive."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tracker(TorchDispatchMode):
    """Know which tensors made by the operations below it are still alive.

    Args:
        own: Storages that are not counted: the network's parameters and buffers.
        absent: Called with a storage that an operation needs and that was moved away: a network
            may keep a tensor that one pass made and use it in the next (tables of positions).
    """

    def __init__(
        self, own: set[int], absent: Callable[[torch.UntypedStorage], None] | None = None
    ) -> None:
        super().__init__()
        self._own, self._absent = own, absent
        self._made: dict[int, weakref.ref[Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and remember what it makes."""
        kwargs = kwargs or {}
        if self._absent is not None:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and _moved_away(value):
                    self._absent(value.untyped_storage())
        output = func(*args, **kwargs)
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self.add(value)
        return output

    def add(self, value: Tensor) -> None:
        """Count a tensor that was made elsewhere.

        Args:
            value: The tensor.
        """
        if value.untyped_storage()._cdata not in self._own:
            self._made[id(value)] = weakref.ref(value)

    def alive(self) -> Iterator[torch.UntypedStorage]:
        """Find the memory that is still in use, each piece once.

        Yields:
            Storages that hold something.
        """
        seen: set[int] = set()
        for key, reference in list(self._made.items()):
            value = reference()
            if value is None:
                del self._made[key]
                continue
            storage = value.untyped_storage()
            if storage._cdata not in seen and storage.nbytes():
                seen.add(storage._cdata)
                yield storage


def storages_of(model: nn.Module) -> set[int]:
    """Identify the memory of a network's parameters and buffers.

    Args:
        model: The network.

    Returns:
        The keys by which `Tracker` leaves it alone.
    """
    values = [*model.parameters(), *model.buffers()]
    return {value.untyped_storage()._cdata for value in values}


def _moved_away(value: Tensor) -> bool:
    return value.numel() > 0 and value.untyped_storage().nbytes() == 0

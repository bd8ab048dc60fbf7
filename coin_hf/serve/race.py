"""Requests to several networks for one input, of which the first that suffice win."""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from coin_hf.serve.events import Observer
from coin_hf.serve.network import Network
from coin_hf.serve.usage import Usage

Kind = Literal["expert", "coded"]


class Key(NamedTuple):
    """Which network: an expert or a coded model, by index."""

    kind: Kind
    number: int


class Race:
    """The requests of one query, by network; what arrived, and what failed."""

    def __init__(
        self,
        networks: Mapping[Key, Network],
        usage: Mapping[Key, Usage],
        x: Any,
        observer: Observer,
    ) -> None:
        """Start with no request.

        Args:
            networks: All networks.
            usage: How much each is in use.
            x: The input.
            observer: Who listens.
        """
        self._networks, self._usage = networks, usage
        self.x, self._observer = x, observer
        self._tasks: dict[asyncio.Task[Tensor], Key] = {}
        self.arrived: dict[Key, Tensor] = {}
        self.failed: dict[Key, BaseException] = {}

    def start(self, kind: Kind, number: int) -> None:
        """Ask a network, unless it is asked already."""
        key = Key(kind, number)
        if key not in self.asked:
            task = asyncio.ensure_future(self._networks[key].ask(self.x))
            self._tasks[task] = key
            self._usage[key].asked()
            task.add_done_callback(lambda _: self._usage[key].settled())

    @property
    def asked(self) -> set[Key]:
        """The networks that were asked."""
        return set(self._tasks.values()) | self.arrived.keys() | self.failed.keys()

    @property
    def pending(self) -> set[Key]:
        """The networks that have neither answered nor failed."""
        return set(self._tasks.values())

    def of(self, kind: Kind) -> dict[int, Tensor]:
        """The answers that arrived, by index of the network."""
        return {number: value for (each, number), value in self.arrived.items() if each == kind}

    def name(self, key: Key) -> str:
        """Return a network's name."""
        return self._networks[key].name

    async def step(self, seconds: float | None) -> set[Key]:
        """Wait until some network answers or fails.

        Args:
            seconds: The longest to wait; None without limit.

        Returns:
            Those that did; empty where the time was up.
        """
        done, _ = await asyncio.wait(
            self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        settled = set()
        for task in sorted(done, key=self._tasks.__getitem__):
            key = self._tasks.pop(task)
            settled.add(key)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None and not task.result().isfinite().all():
                error = ValueError("its logits are not finite")
            if error is None:
                self.arrived[key] = task.result()
            else:
                self.failed[key] = error
        return settled

    def leave(self, keep: Key | None = None) -> asyncio.Task[Tensor] | None:
        """End what is left: nobody waits for it any more.

        Args:
            keep: A network whose request may go on.

        Returns:
            That request, if it is still under way.
        """
        kept = None
        for task, key in self._tasks.items():
            if key == keep:
                kept = task
                continue
            task.add_done_callback(_silence)
            task.cancel()
            self._observer.cancelled(self.name(key))
        self._tasks.clear()
        return kept


def _silence(task: asyncio.Task[Tensor]) -> None:
    """Take the exception of a request that nobody waits for."""
    if not task.cancelled():
        task.exception()

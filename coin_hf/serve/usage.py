"""The share of time that a network is in use."""

import math
from collections.abc import Callable

from coin_hf.serve.network import Network


class Usage:
    """An exponentially weighted mean of whether a network is in use, over time."""

    def __init__(
        self, network: Network, memory: float, now: Callable[[], float], *, routers: int = 1
    ) -> None:
        """Start idle.

        Args:
            network: The network.
            memory: Seconds after which what was counts for 1/e.
            now: The time in seconds.
            routers: How many routers ask it, each as often as this one.
        """
        self._network, self._memory, self._routers = network, memory, routers
        self._now, self._last = now, now()
        self._busy, self._share = False, 0.0

    def asked(self) -> None:
        """Note that a request begins."""
        self._note(True)

    def settled(self) -> None:
        """Note that a request ended, or that nobody waits for it any more."""
        self._note(self._network.waiting > 0)

    @property
    def share(self) -> float:
        """The share of recent time that it was in use, in [0, 1].

        Of R routers, this one knows of its own requests alone: in use for a share s of the time.
        The network is idle where none of them has a request there, which is (1 - s)^R of the time
        where their requests are independent.
        """
        # Work that goes on after its request was given up ends without a note.
        own = self._until_now(self._busy and self._network.waiting > 0)
        return 1 - (1 - own) ** self._routers

    def _note(self, busy: bool) -> None:
        self._share, self._last = self._until_now(self._busy), self._now()
        self._busy = busy

    def _until_now(self, busy: bool) -> float:
        kept = math.exp((self._last - self._now()) / self._memory)
        return kept * self._share + (1 - kept) * busy

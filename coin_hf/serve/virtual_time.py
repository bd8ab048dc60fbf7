"""An event loop whose clock jumps: hours of waiting pass as fast as the work between them."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """A selector that never sleeps: where nothing is ready, time has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready; count the time that the loop wanted to sleep."""
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing is left to happen, but something is awaited")
        if not ready and timeout:
            self.passed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, in seconds from 0."""

    def __init__(self) -> None:
        """Start at 0."""
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time."""
        return self._jumping.passed


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on virtual time, with all that it starts.

    Args:
        main: The coroutine; it must not wait for threads or sockets.

    Returns:
        Its result.

    Raises:
        RuntimeError: If it awaits what never happens.
    """
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()

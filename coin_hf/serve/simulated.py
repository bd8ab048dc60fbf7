"""Networks that only take time: one at a time, in the order that they are asked."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ANSWER = torch.zeros(2)
"""Logits of a network that knows nothing."""


class SimulatedNetwork:
    """A server with a queue, whose service times are drawn."""

    def __init__(
        self,
        name: str,
        service: Callable[[float], float],
        *,
        stops: bool = True,
        answer: Callable[[Any], Tensor] = lambda x: ANSWER,
    ) -> None:
        """Set up an idle server.

        Args:
            name: Its name.
            service: Time at which a request starts -> how long it takes, in seconds; `inf` where
                the server is down: the request then fails at once.
            stops: Whether a request in work ends when it is cancelled.
            answer: Input -> logits.
        """
        self.name, self.stops = name, stops
        self._service, self._answer = service, answer
        self._queue: deque[asyncio.Future[None]] = deque()
        self._running = False
        self.work = 0.0
        """Seconds of work done, for answers that were waited for or not."""

    @property
    def waiting(self) -> int:
        """The number of requests in work."""
        return len(self._queue) + self._running

    async def ask(self, x: Any) -> Tensor:
        """Answer after the requests before and the time that the service takes."""
        loop = asyncio.get_running_loop()
        if self._running:
            turn = loop.create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._queue:
                    self._queue.remove(turn)
                else:  # its turn had come
                    self._next()
                raise
        self._running = True
        seconds = self._service(loop.time())
        if seconds == float("inf"):
            self._next()
            raise ConnectionError(f"{self.name} is down")
        began = loop.time()
        done = loop.create_future()
        timer = loop.call_later(seconds, self._finish, done, seconds)
        try:
            await (done if self.stops else asyncio.shield(done))
        except asyncio.CancelledError:
            if self.stops:
                timer.cancel()
                self.work += loop.time() - began
                self._next()
            raise
        return self._answer(x)

    def _finish(self, done: "asyncio.Future[None]", seconds: float) -> None:
        self.work += seconds
        self._next()
        if not done.done():
            done.set_result(None)

    def _next(self) -> None:
        """Let the next request begin."""
        self._running = False
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                self._running = True
                turn.set_result(None)
                return

    async def close(self) -> None:
        """Hold nothing."""

"""The embedded backend: each network in this process, in a thread of its own, with batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.experts.heads import columns
from coin_hf.networks.inputs import cast, stack, to_device
from coin_hf.networks.logits import call
from coin_hf.records.coin import ClassOrder
from coin_hf.serve.question import Question

Waiting = tuple[Any, "asyncio.Future[Tensor]"]


class LocalNetwork:
    """A network that runs in a thread; what waits while it runs goes together in one batch."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        order: ClassOrder | None = None,
        most: int = 16,
        padded: Callable[[Sequence[Any]], Any] | None = None,
    ) -> None:
        """Start idle.

        Args:
            name: Its name.
            model: The network, in eval mode, on its device.
            order: The rows of an expert's own classes, which alone it answers; None for all rows.
            most: Most inputs of a batch.
            padded: Texts of any lengths -> a batch; None for inputs that must have one shape.
        """
        self.name, self._model, self._order = name, model, order
        self._most, self._padded = most, padded
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._queue: deque[Waiting] = deque()
        self._running = 0
        self._runner: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"coin-hf {name}")

    @property
    def waiting(self) -> int:
        """The number of requests in work."""
        return sum(not future.done() for _, future in self._queue) + self._running

    @property
    def stops(self) -> bool:
        """Whether a cancelled request ends there: while it waits, but not while it runs."""
        return any(not future.done() for _, future in self._queue)

    async def ask(self, x: Question) -> Tensor:
        """Answer one input, in a batch with others that wait.

        Args:
            x: The input.

        Returns:
            Raw logits, shape (K_i,), on the CPU.
        """
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._queue.append((x.prepared, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())
        return await future  # a request that is given up cancels it, and is left out of batches

    async def _run(self) -> None:
        """Run batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._batch():
            self._running = len(batch)
            try:
                inputs = [x for x, _ in batch]
                answers = await loop.run_in_executor(self._pool, self._forward, inputs)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
            finally:
                self._running = 0

    def _batch(self) -> list[Waiting]:
        """Take the first requests of one form that somebody waits for."""
        found: list[Waiting] = []
        while self._queue and len(found) < self._most:
            if self._queue[0][1].done():
                self._queue.popleft()
            elif not found or self._form(self._queue[0][0]) == self._form(found[0][0]):
                found.append(self._queue.popleft())
            else:
                break
        return found

    @torch.inference_mode()
    def _forward(self, inputs: Sequence[Any]) -> Sequence[Tensor]:
        batch = (self._padded or stack)(inputs)
        batch = cast(to_device(batch, self._device), self._dtype)
        logits = call(self._model, batch).float().cpu()
        return list(columns(logits, self._order, "rows"))

    async def close(self) -> None:
        """Wait for what runs, and end the thread."""
        if self._runner is not None:
            await asyncio.wait([self._runner])
        self._pool.shutdown(wait=True)

    def _form(self, x: Any) -> Any:
        """Return what inputs of one batch have in common: names, or names and shapes."""
        if self._padded is not None:
            return list(x)
        return {n: v.shape for n, v in x.items()} if isinstance(x, Mapping) else x.shape

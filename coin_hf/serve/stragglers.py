"""Make processes straggle: stop each now and then, as a busy neighbour or a collector does."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np

from coin_hf.errors import InputError

SHARE, PAUSE = 0.05, 0.5
"""Share of the time that a straggling process is stopped, and seconds that each stop lasts."""


@asynccontextmanager
async def stragglers(
    processes: Sequence[int], *, pause: float = PAUSE, seed: int = 0
) -> AsyncIterator[None]:
    """Stop processes at random times, each by itself, for `SHARE` of the time.

    Args:
        processes: Their ids.
        pause: Seconds that one is stopped for.
        seed: Of the times.

    Yields:
        While they are; all of them go on at the end.

    Raises:
        InputError: If there is no such process.
    """

    async def disturb(process: int, rng: np.random.Generator) -> None:
        with suppress(InputError):  # it has ended meanwhile
            while True:
                await asyncio.sleep(rng.exponential(pause * (1 - SHARE) / SHARE))
                send_signal(process, signal.SIGSTOP)
                await asyncio.sleep(pause)
                send_signal(process, signal.SIGCONT)

    for process in processes:
        send_signal(process, signal.SIGCONT)  # whether it may be
    tasks = [
        asyncio.ensure_future(disturb(process, np.random.default_rng([seed, number])))
        for number, process in enumerate(processes)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for process in processes:
            with suppress(InputError):
                send_signal(process, signal.SIGCONT)


def send_signal(process: int, number: signal.Signals) -> None:
    """Send a process a signal.

    Args:
        process: Its id.
        number: The signal.

    Raises:
        InputError: If there is none, or it belongs to somebody else.
    """
    try:
        os.kill(process, number)
    except (OSError, OverflowError) as error:
        what = "ended" if number == signal.SIGKILL else "stopped"
        raise InputError(f"process {process} cannot be {what}: {error}") from error

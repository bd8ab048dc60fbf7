"""Put load on a server: an open loop of queries, whatever the answers take."""

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import numpy as np

from coin_hf.errors import InputError, reason_of
from coin_hf.reports.tables import aligned, number
from coin_hf.serve.figures import draw_to
from coin_hf.serve.stragglers import PAUSE, send_signal, stragglers

COLORS = {"direct": "#1f4e8c", "decoded": "#3a8f5d", "alone": "#e08a1e", "failed": "#b0432f"}

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One query: when it was sent, how long its answer took, and what it was."""

    at: float
    """Seconds since the start."""
    seconds: float
    expert: str
    status: int
    """HTTP status; 0 where there was no answer."""
    answer: str
    """`direct`, `decoded`, `alone` or `failed`."""


@dataclass
class Report:
    """All queries of a run."""

    asked: list[Asked] = field(default_factory=list)
    killed_at: float | None = None
    """Seconds since the start at which a process was ended, if one was."""

    def quantiles(self, answer: str | None = None) -> tuple[float, float, float]:
        """Return p50, p95 and p99 of the answers, in seconds.

        Args:
            answer: Of those of one kind; None for all answers.

        Returns:
            Three numbers, NaN where there was none.
        """
        found = [
            each.seconds
            for each in self.asked
            if (each.answer == answer if answer else each.answer != "failed")
        ]
        if not found:
            return math.nan, math.nan, math.nan
        low, middle, high = np.quantile(found, [0.5, 0.95, 0.99])
        return float(low), float(middle), float(high)

    def table(self) -> str:
        """Render the run: a row for each kind of answer, then the statuses of failures."""
        rows = []
        for kind in COLORS:
            count = sum(each.answer == kind for each in self.asked)
            if count:
                rows.append([kind, str(count), *self._milliseconds(kind)])
        rows.append(["all answers", str(self.answered), *self._milliseconds(None)])
        text = aligned(["answer", "count", "p50 ms", "p95 ms", "p99 ms"], rows, "plain", text=1)
        codes = Counter(each.status or "none" for each in self.asked if each.answer == "failed")
        if codes:
            said = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items(), key=str))
            text += f"\n\nfailures by status: {said}"
        return text

    @property
    def answered(self) -> int:
        """The number of queries that were answered."""
        return sum(each.answer != "failed" for each in self.asked)

    def _milliseconds(self, kind: str | None) -> list[str]:
        return [number(1000 * value) if value == value else "-" for value in self.quantiles(kind)]


async def put_load(
    url: str,
    bodies: Sequence[bytes],
    content_type: str,
    *,
    rate: float,
    requests: int,
    experts: Sequence[str] = (),
    seed: int = 0,
    kill: int | None = None,
    straggle: Sequence[int] = (),
    pause: float = PAUSE,
    seconds: float = 60.0,
) -> Report:
    """Send queries at random times, on average `rate` a second, without waiting for answers.

    Args:
        url: The server's address.
        bodies: Bodies that are sent by turns.
        content_type: Of the bodies.
        rate: Queries a second, a Poisson stream.
        requests: Their number.
        experts: The experts that are asked by turns; by default all that the server has.
        seed: Of the times.
        kill: A process that is ended by SIGKILL when half of the queries are sent.
        straggle: Processes that are stopped now and then, as `stragglers` does.
        pause: Seconds that each is stopped for.
        seconds: The longest that an answer may take.

    Returns:
        What became of each query, in the order sent.

    Raises:
        InputError: If the rate is no number, or there is no such server or process.
    """
    if not math.isfinite(rate):
        raise InputError(f"the rate {rate} is no number of queries a second: give one above 0")
    timeout = aiohttp.ClientTimeout(total=seconds)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        names = list(experts) or await _experts(session, url)
        report, began = Report(), time.perf_counter()

        def send(k: int) -> Awaitable[Asked]:
            if kill is not None and k == requests // 2:
                report.killed_at = time.perf_counter() - began
                send_signal(kill, signal.SIGKILL)
            name, body = names[k % len(names)], bodies[k % len(bodies)]
            return _ask(session, url, name, body, content_type, began)

        async with stragglers(straggle, pause=pause, seed=seed):
            report.asked = await open_loop(send, rate=rate, requests=requests, seed=seed)
    return report


async def open_loop(
    send: Callable[[int], Awaitable[T]], *, rate: float, requests: int, seed: int = 0
) -> list[T]:
    """Send queries in a Poisson stream, without waiting for answers.

    Args:
        send: Number of the query -> its answer, to be awaited.
        rate: Queries a second.
        requests: Their number.
        seed: Of the times.

    Returns:
        The answers, in the order sent.
    """
    rng, began = np.random.default_rng(seed), time.perf_counter()
    tasks, due = [], 0.0
    for k in range(requests):
        due += rng.exponential(1 / rate)
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(send(k)))
    return list(await asyncio.gather(*tasks))


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    name: str,
    body: bytes,
    content_type: str,
    began: float,
) -> Asked:
    start = time.perf_counter()
    headers = {"content-type": content_type}
    try:
        place = f"{url}/models/{quote(name, safe='')}"
        async with session.post(place, data=body, headers=headers) as response:
            await response.read()
            status = response.status
            kind = response.headers.get("x-coin-answer", "failed") if status == 200 else "failed"
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        status, kind = 0, "failed"
    now = time.perf_counter()
    return Asked(start - began, now - start, name, status, kind)


async def _experts(session: aiohttp.ClientSession, url: str) -> list[str]:
    try:
        async with session.get(f"{url}/info") as response:
            info = await response.json()
            return [expert["name"] for expert in info["experts"]]
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{url} does not answer as `coin-hf serve` does ({reason_of(error)}): start it first"
        ) from error


def draw(report: Report, path: Path) -> None:
    """Draw how long each answer took, over time.

    Args:
        report: The run.
        path: Where the figure goes, a PNG or SVG file.

    Raises:
        InputError: If it is another kind of file, or cannot be written.
    """

    def axes_of(axes: Any) -> None:
        for kind, color in COLORS.items():
            mine = [each for each in report.asked if each.answer == kind]
            if mine:
                times, took = [each.at for each in mine], [1000 * each.seconds for each in mine]
                label = f"{kind} ({len(mine)})"
                axes.plot(times, took, ".", color=color, label=label, markersize=4)
        if report.killed_at is not None:
            axes.axvline(report.killed_at, color="black", linewidth=0.8, linestyle=":")
            axes.annotate(
                "process ended", (report.killed_at, 1), xycoords=("data", "axes fraction"),
                xytext=(4, -10), textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.set_xlabel("seconds since the start")
        axes.set_ylabel("milliseconds until the answer")

    draw_to(path, axes_of)

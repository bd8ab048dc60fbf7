"""Simulate layouts of servers on virtual time: whether to code at all, for a load and its faults.

Four layouts answer the same stream of queries:

- `uncoded`: N servers, one an expert;
- `replicas`: 2 N servers, two an expert; the less busy one is asked, the other one if it is late;
- `coded`: N + M servers behind the router that `coin-hf serve` runs;
- `standby`: N + 1 servers, one of which holds all N networks, behind the same router.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from coin_hf.recipe.blocks import Block, Count, Number, Seed
from coin_hf.serve.decoder import Decoding
from coin_hf.serve.guards import Deadline
from coin_hf.serve.network import Overloaded, Unanswered
from coin_hf.serve.router import Router
from coin_hf.serve.settings import DeadlineBlock, HedgeBlock, ServeSettings
from coin_hf.serve.simulated import SimulatedNetwork
from coin_hf.serve.virtual_time import run_virtually

Layout = Literal["uncoded", "replicas", "coded", "standby"]
LAYOUTS: tuple[Layout, ...] = ("uncoded", "replicas", "coded", "standby")
WARM = 0.1
"""Share of the queries, the first ones, that are not counted."""


class StragglersBlock(Block):
    """Single requests that take longer, at random."""

    share: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    """Share of the requests."""
    factor: Annotated[Number, Field(ge=1, le=1e6)] = 10.0
    """How many times longer they take."""


class SlowBlock(Block):
    """Periods in which a server is slow."""

    share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    """Share of the time."""
    factor: Annotated[Number, Field(ge=1, le=1e6)] = 10.0
    """How many times longer requests take then."""
    lasting: Annotated[Number, Field(gt=0, le=1e6)] = 50.0
    """How long a period lasts on average, in mean service times."""


class Scenario(Block):
    """What is simulated; all times are in mean service times."""

    experts: Annotated[Count, Field(ge=2, le=64)] = 2
    """N."""
    coded: Annotated[Count, Field(le=8)] = 1
    """M."""
    queries: Literal["one", "all"] = "one"
    """Each query goes to one expert, at random, or to all (an ensemble)."""
    loads: tuple[Annotated[Number, Field(gt=0, lt=1)], ...] = (0.2, 0.4, 0.6)
    """Share of its time that each of N uncoded servers is in use, without faults."""
    spread: Annotated[Number, Field(gt=0, le=3)] = 0.33
    """Standard deviation of a service time, as a share of its mean (gamma distributed)."""
    stragglers: StragglersBlock | None = None
    slow: SlowBlock | None = None
    stops: bool = True
    """Whether a request in work ends where nobody waits for it; a forward pass runs on."""
    down: Annotated[int, Field(ge=0)] = 0
    """How many of the experts' servers are down, from the first on."""
    count: Annotated[Count, Field(ge=100, le=10**6)] = 5000
    """Queries for each layout and load."""
    seed: Seed = 0
    router: ServeSettings = ServeSettings.model_validate(
        {
            "deadline": {"least": 1.0, "most": 20.0},
            "breaker": {"probe": 20.0, "memory": 100.0},
            "limits": {"seconds": 3600},
        }
    )
    """Settings of the router, in mean service times; `limits.seconds` ends a request."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.down > self.experts:
            raise ValueError(f"`down` is {self.down}, but there are {self.experts} experts")
        return self


@dataclass(frozen=True)
class Outcome:
    """What one layout does under one load."""

    layout: Layout
    load: float
    machines: int
    p50: float | None
    """In mean service times; None where nothing was answered, as all that follow."""
    p95: float | None
    p99: float | None
    refused: float
    """Share of the queries that were refused, as those of an expert that is down."""
    failed: float
    """Share of the queries that got no answer."""
    work: float
    """Work done for each query, in mean service times."""


def simulate(scenario: Scenario) -> list[Outcome]:
    """Simulate every layout under every load, with the same queries.

    Args:
        scenario: What is simulated.

    Returns:
        An outcome for each, load by load.
    """
    return [
        run_virtually(_run(scenario, layout, load)) for load in scenario.loads for layout in LAYOUTS
    ]


class _Standby:
    """One more server that holds all networks: it alone answers for any expert."""

    def helpers(self, expert: int) -> tuple[int, ...]:
        return ()

    def parities(self, expert: int) -> tuple[int, ...]:
        return (0,)

    def suffices(self, expert: int, experts: Collection[int], coded: Collection[int]) -> bool:
        return 0 in coded

    def decode(
        self, expert: int, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
    ) -> Tensor:
        return coded[0]

    def alone(self, expert: int, coded: Mapping[int, Tensor]) -> tuple[int, Tensor]:
        return next(iter(coded.items()))


@dataclass(frozen=True)
class _Coded:
    """N experts and M coded models, any N of which suffice; what they answer is not computed."""

    experts: int
    coded: int

    def helpers(self, expert: int) -> tuple[int, ...]:
        return tuple(j for j in range(self.experts) if j != expert)

    def parities(self, expert: int) -> tuple[int, ...]:
        return tuple(range(self.coded))

    def suffices(self, expert: int, experts: Collection[int], coded: Collection[int]) -> bool:
        return len(experts) + len(coded) >= self.experts

    def decode(
        self, expert: int, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
    ) -> Tensor:
        return next(iter(coded.values()))

    def alone(self, expert: int, coded: Mapping[int, Tensor]) -> tuple[int, Tensor]:
        return next(iter(coded.items()))


class _Pair:
    """Two replicas: the less busy one is asked, the other one too if it is late or fails."""

    def __init__(self, pair: Sequence[SimulatedNetwork], block: DeadlineBlock) -> None:
        self._pair, self._deadline = pair, Deadline(block)

    async def ask(self) -> None:
        first, second = sorted(self._pair, key=lambda each: each.waiting)
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = {asyncio.ensure_future(first.ask(None))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._deadline.seconds)
            failed = bool(done) and all(task.exception() for task in done)
            if failed or not (done or second.waiting):
                tasks.add(asyncio.ensure_future(second.ask(None)))
            error: BaseException | None = None
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        self._deadline.observe(loop.time() - began)
                        return
            raise Unanswered("both replicas fail") from error
        finally:
            for task in tasks:
                task.cancel()


async def _run(scenario: Scenario, layout: Layout, load: float) -> Outcome:
    """Send the stream of queries to one layout."""
    n = scenario.experts
    extra = {"uncoded": 0, "replicas": n, "coded": scenario.coded, "standby": 1}[layout]
    servers = [_server(scenario, number) for number in range(n + extra)]
    ask = _asking(scenario, layout, servers)
    rng = np.random.default_rng([scenario.seed, round(1e6 * load)])
    every = scenario.queries == "all"
    found: list[float] = []
    refused = failed = 0
    loop = asyncio.get_running_loop()

    async def query(number: int, expert: int) -> None:
        nonlocal refused, failed
        counted, began = number >= WARM * scenario.count, loop.time()
        try:
            await ask(expert)
        except Overloaded:
            refused += counted
        except (Unanswered, ConnectionError):
            failed += counted
        else:
            if counted:
                found.append(loop.time() - began)

    tasks = []
    for number in range(scenario.count):
        await asyncio.sleep(rng.exponential(1 / (load if every else load * n)))
        tasks.append(asyncio.ensure_future(query(number, int(rng.integers(n)))))
    await asyncio.gather(*tasks)
    counted = scenario.count - math.ceil(WARM * scenario.count)
    p50, p95, p99 = np.quantile(found, [0.5, 0.95, 0.99]).tolist() if found else [None] * 3
    work = sum(each.work for each in servers) / scenario.count
    return Outcome(
        layout, load, len(servers), p50, p95, p99, refused / counted, failed / counted, work
    )


def _asking(
    scenario: Scenario, layout: Layout, servers: Sequence[SimulatedNetwork]
) -> Callable[[int], Awaitable[Any]]:
    """Return how a layout answers a query: for one expert, or for all."""
    n, every = scenario.experts, scenario.queries == "all"
    if layout == "replicas":
        pairs = [_Pair((servers[i], servers[n + i]), scenario.router.deadline) for i in range(n)]
        one: Callable[[int], Awaitable[Any]] = lambda expert: pairs[expert].ask()  # noqa: E731
    elif layout == "uncoded":
        one = lambda expert: servers[expert].ask(None)  # noqa: E731
    else:
        decoding: Decoding = _Coded(n, scenario.coded) if layout == "coded" else _Standby()
        settings = scenario.router
        if every and layout == "standby":  # as a coded model is asked in a fan-out: without tokens
            freely = HedgeBlock(tokens=1e6, refill=1.0)
            settings = settings.model_copy(update={"hedge": freely})
        router = Router(servers[:n], servers[n:], decoding, settings)
        if every and layout == "coded":
            return lambda expert: router.ask_all(None)
        one = lambda expert: router.ask(expert, None)  # noqa: E731
    if not every:
        return one
    return lambda expert: asyncio.gather(*(one(i) for i in range(n)))


def _server(scenario: Scenario, number: int) -> SimulatedNetwork:
    """Make a server whose times and slow periods depend on its number alone."""
    rng = np.random.default_rng([scenario.seed, number])
    shape = scenario.spread**-2
    slow, periods = scenario.slow, [0.0]  # ends of fast and slow periods by turns

    def is_slow(now: float) -> bool:
        if slow is None:
            return False
        fast = slow.lasting * (1 - slow.share) / slow.share
        while periods[-1] <= now:
            mean = fast if len(periods) % 2 else slow.lasting
            periods.append(periods[-1] + rng.exponential(mean))
        place = int(np.searchsorted(periods, now, side="right"))
        return place % 2 == 0

    def service(now: float) -> float:
        if number < scenario.down:
            return math.inf
        seconds = rng.gamma(shape, 1 / shape)
        if scenario.stragglers is not None and rng.random() < scenario.stragglers.share:
            seconds *= scenario.stragglers.factor
        if slow is not None and is_slow(now):
            seconds *= slow.factor
        return float(seconds)

    return SimulatedNetwork(f"server {number}", service, stops=scenario.stops)

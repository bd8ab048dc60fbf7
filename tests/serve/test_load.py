"""Under load, on virtual time: hedging never makes the tail worse, and helps where it can."""

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from coin_hf.erasure.code import ErasureCode
from coin_hf.serve.decoder import Decoder
from coin_hf.serve.network import Unanswered
from coin_hf.serve.router import Router
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.simulated import SimulatedNetwork
from coin_hf.serve.virtual_time import run_virtually

SECONDS = 0.1
"""Mean service time."""
SETTINGS = ServeSettings.model_validate({"deadline": {"least": SECONDS, "most": 20 * SECONDS}})


def servers(
    count: int, prefix: str, seed: int, slow: float, factor: float
) -> list[SimulatedNetwork]:
    """Servers whose requests take times of a spread of a third, a share of them longer."""
    rng = np.random.default_rng([seed, len(prefix), ord(prefix[0])])

    def service(now: float) -> float:
        usual = SECONDS * rng.gamma(9.0, 1 / 9.0)
        return usual * (factor if rng.random() < slow else 1.0)

    return [SimulatedNetwork(f"{prefix}{i}", service) for i in range(count)]


def latencies(
    n: int,
    m: int,
    load: float,
    *,
    hedged: bool,
    queries: int,
    seed: int,
    slow: float = 0.0,
    factor: float = 1.0,
) -> list[float]:
    """Queries to one expert each, at random, in a Poisson stream; how long each takes."""

    async def run() -> list[float]:
        rng = np.random.default_rng(seed)
        code = ErasureCode.design(n, m)
        router = Router(
            servers(n, "expert", seed, slow, factor),
            servers(m, "coded", seed, slow, factor),
            Decoder(code, (None,) * n),
            SETTINGS,
        )
        found: list[float] = []

        async def query(expert: int) -> None:
            reply = await router.ask(expert, 0.0, decoded="allow" if hedged else "refuse")
            found.append(reply.seconds)

        mean = SECONDS * (1 + slow * (factor - 1))
        tasks = []
        for _ in range(queries):
            await asyncio.sleep(rng.exponential(mean / (load * n)))
            tasks.append(asyncio.ensure_future(query(int(rng.integers(n)))))
        await asyncio.gather(*tasks)
        return found

    return run_virtually(run())


def p99(values: Sequence[float]) -> float:
    return sorted(values)[math.floor(0.99 * len(values))]


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("n", [2, 4])
def test_a_storm_is_no_worse_than_no_hedging(n: int, load: float) -> None:
    ratios = []
    for seed in (0, 1):
        plain = p99(latencies(n, 1, load, hedged=False, queries=4000, seed=seed))
        hedged = p99(latencies(n, 1, load, hedged=True, queries=4000, seed=seed))
        ratios.append(hedged / plain)
    assert np.mean(ratios) <= 1.1, ratios


@pytest.mark.slow
def test_stragglers_are_answered_for() -> None:
    few = {"slow": 0.05, "factor": 10.0, "queries": 4000, "seed": 0}
    plain = p99(latencies(2, 1, 0.2, hedged=False, **few))
    hedged = p99(latencies(2, 1, 0.2, hedged=True, **few))
    assert hedged <= 0.8 * plain, (hedged, plain)


def fan_out(n: int, *, coded: bool, load: float, seed: int, queries: int) -> list[float]:
    """Queries to all experts with one server down: N + 1 coded, or two replicas of each expert."""

    async def run() -> list[float]:
        rng = np.random.default_rng(seed)
        every = servers(n + 1 if coded else 2 * n, "server", seed, 0.0, 1.0)
        every[0]._service = lambda now: math.inf  # type: ignore[method-assign]
        code = ErasureCode.design(n, 1)
        router = Router(every[:n], every[n : n + 1], Decoder(code, (None,) * n), SETTINGS)
        found: list[float] = []
        loop = asyncio.get_running_loop()

        async def by_code() -> None:
            replies = await router.ask_all(0.0)
            found.append(max(reply.seconds for reply in replies))

        async def by_replicas() -> None:
            began = loop.time()

            async def one(i: int) -> None:
                pair = [each for each in (every[i], every[n + i]) if each is not every[0]]
                server = min(pair, key=lambda each: each.waiting)
                await server.ask(0.0)

            await asyncio.gather(*(one(i) for i in range(n)))
            found.append(loop.time() - began)

        tasks = []
        for _ in range(queries):
            await asyncio.sleep(rng.exponential(SECONDS / load))
            tasks.append(asyncio.ensure_future(by_code() if coded else by_replicas()))
        await asyncio.gather(*tasks)
        return found

    return run_virtually(run())


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_a_fan_out_with_one_down_is_near_replicas(n: int) -> None:
    settings = {"load": 0.3, "seed": 0, "queries": 3000}
    coded = p99(fan_out(n, coded=True, **settings))
    replicas = p99(fan_out(n, coded=False, **settings))
    assert coded <= 1.2 * replicas, (coded, replicas)


def fork_join(n: int, *, load: float, seed: int, queries: int) -> list[float]:
    """The oracle: N queues, each of which serves every query, in the order of arrival."""
    rng = np.random.default_rng(seed)
    work, found = np.zeros(n), []
    for gap in rng.exponential(SECONDS / load, queries):
        work = np.maximum(work - gap, 0) + SECONDS * rng.gamma(9.0, 1 / 9.0, n)
        found.append(float(work.max()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8])
def test_a_fan_out_with_one_down_is_what_the_servers_left_can_do(n: int) -> None:
    """Every query needs all N servers left: the router adds nothing to their queues."""
    coded = [p99(fan_out(n, coded=True, load=0.3, seed=k, queries=3000)) for k in (0, 1)]
    possible = p99(fork_join(n, load=0.3, seed=0, queries=50_000))
    assert np.mean(coded) == pytest.approx(possible, rel=0.1)


def test_a_router_fails_where_all_is_down() -> None:
    async def run() -> None:
        down = [SimulatedNetwork(f"n{i}", lambda now: math.inf) for i in range(3)]
        decoder = Decoder(ErasureCode.design(2, 1), (None, None))
        with pytest.raises(Unanswered):
            await Router(down[:2], down[2:], decoder).ask(0, torch.zeros(1))

    run_virtually(run())

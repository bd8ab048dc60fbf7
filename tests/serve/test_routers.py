"""Several routers over the same networks: each knows of its own requests alone."""

import asyncio
import base64
import io
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import digits, make_world
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from serving import ask, get, plain_servers, post, serving
from torch import Tensor

from coin_hf import Recipe, encode
from coin_hf.erasure.code import ErasureCode
from coin_hf.serve.decoder import Decoder
from coin_hf.serve.metrics import text_of
from coin_hf.serve.network import Overloaded
from coin_hf.serve.router import Router
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.simulated import SimulatedNetwork
from coin_hf.serve.virtual_time import run_virtually

SECONDS = 0.1
"""Mean service time."""


class Seen:
    """A network as one of several routers sees it: it knows of its own requests."""

    stops = True

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network, self.name, self.waiting = network, network.name, 0

    async def ask(self, x: Any) -> Tensor:
        self.waiting += 1
        try:
            return await self.network.ask(x)
        finally:
            self.waiting -= 1

    async def close(self) -> None:
        await self.network.close()


def latencies(
    load: float, *, routers: int, hedged: bool = True, down: int = 0, seed: int = 0
) -> tuple[list[float], float]:
    """Queries to one of two experts by any router: seconds until an answer; share refused."""

    async def run() -> tuple[list[float], float]:
        rng = np.random.default_rng(seed)

        def network(number: int) -> SimulatedNetwork:
            times = np.random.default_rng([seed, number])

            def service(now: float) -> float:
                return math.inf if number < down else SECONDS * times.gamma(9.0, 1 / 9.0)

            return SimulatedNetwork(f"n{number}", service)

        networks = [network(number) for number in range(3)]
        settings = ServeSettings.model_validate({
            "backend": "remote", "urls": {}, "routers": routers,
            "deadline": {"least": SECONDS, "most": 20 * SECONDS},
        })  # fmt: skip
        decoder = Decoder(ErasureCode.design(2, 1), (None, None))
        every = []
        for _ in range(routers):
            seen = [Seen(each) for each in networks]
            every.append(Router(seen[:2], seen[2:], decoder, settings))
        found, refused = [], 0

        async def query(router: Router, expert: int) -> None:
            nonlocal refused
            try:
                reply = await router.ask(expert, 0.0, decoded="allow" if hedged else "refuse")
                found.append(reply.seconds)
            except Overloaded:
                refused += 1

        tasks, count = [], 3000
        for _ in range(count):
            await asyncio.sleep(rng.exponential(SECONDS / (2 * load)))
            router = every[int(rng.integers(routers))]
            tasks.append(asyncio.ensure_future(query(router, int(rng.integers(2)))))
        await asyncio.gather(*tasks)
        return found, refused / count

    return run_virtually(run())


def p99(values: Sequence[float]) -> float:
    return sorted(values)[math.floor(0.99 * len(values))]


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_a_storm_by_several_routers_is_no_worse_than_no_hedging(load: float) -> None:
    ratios = []
    for seed in (0, 1):
        plain = p99(latencies(load, routers=3, hedged=False, seed=seed)[0])
        ratios.append(p99(latencies(load, routers=3, seed=seed)[0]) / plain)
    assert np.mean(ratios) <= 1.1, ratios


@pytest.mark.slow
def test_several_routers_refuse_as_much_as_one() -> None:
    """With one expert down, half load is the limit for all routers together."""
    (alone, refused), (shared, refused_by_all) = (
        latencies(0.4, routers=count, down=1) for count in (1, 4)
    )
    assert refused > 0.2
    assert refused_by_all == pytest.approx(refused, abs=0.1)
    assert p99(shared) <= 1.2 * p99(alone)


def test_metrics_of_several_routers_are_told_apart() -> None:
    by_router = {}
    for number, name in enumerate(("a", "b")):
        registry = CollectorRegistry()
        counter = Counter("coin_requests", "Answers.", ["expert"], registry=registry)
        counter.labels("low").inc(number + 1)
        by_router[name] = list(registry.collect())
    text = text_of(by_router).decode()
    assert text.count("# HELP coin_requests_total") == 1
    [family] = [f for f in text_string_to_metric_families(text) if f.name == "coin_requests"]
    counts = {s.labels["router"]: s.value for s in family.samples if s.name.endswith("_total")}
    assert counts == {"a": 1, "b": 2}
    assert "router=" not in text_of({"": by_router["a"]}).decode()  # one that is alone


def test_routers_of_their_own_networks_share_nothing() -> None:
    with pytest.raises(ValidationError, match="each process has its own networks"):
        ServeSettings.model_validate({"routers": 2})


def total(text: str, name: str = "coin_requests_total") -> float:
    return sum(float(n) for n in re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.M))


@pytest.mark.slow
def test_two_routers_over_the_same_servers(tmp_path: Path) -> None:
    """Both answer alike, each learns by itself, and one goes on where the other is killed."""
    coded = tmp_path / "coded"
    encode(Recipe.from_yaml(make_world(tmp_path))).save_pretrained(coded)
    stream = io.BytesIO()
    digits(slice(0, 1))[0]["image"].save(stream, "PNG")
    said = base64.b64encode(stream.getvalue()).decode()
    folders = {"low": tmp_path / "low", "high": tmp_path / "high", "coded": coded}
    with ExitStack() as stack:
        servers = stack.enter_context(plain_servers(folders))
        words = [f"urls.{name}={each.url}" for name, each in servers.items()]
        words += ["routers=2", "breaker.shed=1", "breaker.misses=2"]
        options = ["--backend", "remote", *(part for word in words for part in ("-o", word))]
        one, two = (stack.enter_context(serving(str(coded), *options)) for _ in range(2))
        raw = {"function_to_apply": "none", "top_k": 10}
        direct = [ask(f"{each.url}/models/high", said, **raw)[1] for each in (one, two)]
        assert direct[0] == direct[1]
        servers["high"].process.kill()
        servers["high"].process.wait()
        decoded = [ask(f"{one.url}/models/high", said, **raw) for _ in range(3)]
        assert {headers["x-coin-answer"] for _, _, headers in decoded} == {"decoded"}
        down = [json.loads(get(f"{each.url}/info")[1])["experts"][1]["down"] for each in (one, two)]
        assert down == [True, False]  # the other one was not asked yet
        status, answer, headers = ask(f"{two.url}/models/high", said, **raw)
        assert (status, headers["x-coin-answer"]) == (200, "decoded")
        assert answer == decoded[-1][1]
        assert total(get(f"{one.url}/metrics")[1]) == 4
        one.process.kill()
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(
                lambda k: post(f"{two.url}/models/{('low', 'high')[k % 2]}", stream.getvalue()),
                range(12),
            ))  # fmt: skip
        assert [status for status, _, _ in again] == [200] * 12
        text = get(f"{two.url}/metrics")[1]
        assert total(text) == total(text, "coin_responses_total") == 14

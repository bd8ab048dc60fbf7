"""The tail on Ray Serve, coded and uncoded by turns: networks straggle, and one is killed.

    coin-hf demo && python recipes/benchmarks/ray_tail.py [coin-hf-demo/coded] [--rounds 3]

One server, one stream of queries: of each four, two may be answered by decoding (coded) and two
must not (`"decoded": "refuse"`, uncoded), so that both meet the same pauses, the same queues and
the same kill. Cases:

- `one`: queries to one expert, while every network's process is stopped 5 % of the time;
- `all`: queries to all experts (an ensemble), with the same pauses; uncoded, each expert is asked
  by a request of its own, at once, and the slowest answer counts;
- `kill`: queries to one expert, one expert's process ended by SIGKILL in the middle. Ray starts it
  again. Coded answers must come within the deadline and five of the p95 before the kill.

Each round of a case is added to `results/ray_tail.json` as soon as it is done, and rounds that are
there are not run again (`--again` forgets them): a run that was stopped goes on. Renders its part
of `serving.md`. Run it on a machine without other work; a round takes about `--requests` / `--rate`
seconds.
"""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import aiohttp
import numpy as np
from bench.machine import describe, sentence
from bench.served import Served, demo_images, ray_options, serving, wait_for
from bench.tables import PAGE, put, read, table

from coin_hf.repository.atomic import write_whole
from coin_hf.serve.load import open_loop
from coin_hf.serve.stragglers import SHARE, stragglers

HERE = Path(__file__).parent
Case = Literal["one", "all", "kill"]
CASES: tuple[Case, ...] = ("kill", "one", "all")
WARM = 120
"""Queries before each round, by which the deadlines are learnt: what was before is forgotten."""
AFTER = 15.0
"""Seconds after a kill in which queries count as disturbed by it."""
WITHIN = 5
"""Coded answers after a kill must come within the deadline and so many healthy p95."""
PATIENCE = aiohttp.ClientTimeout(total=60)


class Asked(NamedTuple):
    """One query."""

    at: float
    """Seconds since the start of the round."""
    seconds: float
    coded: bool
    expert: int
    """Which was asked; -1 for all."""
    answer: str
    """`direct`, `decoded` or `failed`."""


class Client:
    """Sends queries, coded and uncoded by turns."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        names: Sequence[str],
        images: Sequence[bytes],
    ) -> None:
        self._session, self._url, self._names = session, url, names
        self._images = [base64.b64encode(image).decode() for image in images]
        self._began = time.perf_counter()

    async def one(self, k: int) -> Asked:
        """Ask one expert."""
        coded, expert = k % 4 < 2, k % len(self._names)
        at = time.perf_counter() - self._began
        kind = await self._answer(f"models/{quote(self._names[expert], safe='')}", k, coded)
        return Asked(at, time.perf_counter() - self._began - at, coded, expert, kind)

    async def all(self, k: int) -> Asked:
        """Ask all experts."""
        coded, at = k % 4 < 2, time.perf_counter() - self._began
        if coded:
            kinds = [await self._answer("ensemble", k, None)]
        else:
            places = [f"models/{quote(name, safe='')}" for name in self._names]
            kinds = await asyncio.gather(*(self._answer(place, k, False) for place in places))
        worst = max(kinds, key=["direct", "decoded", "failed"].index)
        return Asked(at, time.perf_counter() - self._began - at, coded, -1, worst)

    async def _answer(self, place: str, k: int, coded: bool | None) -> str:
        parameters = {} if coded is None else {"decoded": "allow" if coded else "refuse"}
        said = {"inputs": self._images[k % len(self._images)], "parameters": parameters}
        try:
            async with self._session.post(f"{self._url}/{place}", json=said) as response:
                await response.read()
                return response.headers["x-coin-answer"] if response.status == 200 else "failed"
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return "failed"


async def run_round(
    server: Served, case: Case, number: int, images: Sequence[bytes], given: argparse.Namespace
) -> dict[str, Any]:
    """Run one round of a case."""
    async with aiohttp.ClientSession(
        timeout=PATIENCE, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        async with session.get(f"{server.url}/info") as response:
            names = [each["name"] for each in (await response.json())["experts"]]
        await open_loop(
            Client(session, server.url, names, images).one, rate=given.rate, requests=WARM, seed=99
        )
        parts = server.parts()
        networks = {n: p for n, p in parts.items() if n.startswith(("expert-", "coded-"))}
        pids = [each.pid for name in sorted(networks) for each in networks[name]]
        client, began = Client(session, server.url, names, images), time.perf_counter()
        killed: dict[str, Any] = {}
        victim = number % len(names)

        async def kill() -> None:
            await asyncio.sleep(given.requests / given.rate / 2)
            async with session.get(f"{server.url}/info") as response:
                expert = (await response.json())["experts"][victim]
            [process] = networks[f"expert-{victim}"]
            process.kill()
            killed.update(
                at=time.perf_counter() - began, expert=victim, deadline=expert["deadline_seconds"]
            )

        killing = asyncio.ensure_future(kill()) if case == "kill" else None
        async with stragglers([] if case == "kill" else pids, pause=given.pause, seed=number):
            asked = await open_loop(
                client.all if case == "all" else client.one,
                rate=given.rate, requests=given.requests, seed=number,
            )  # fmt: skip
        if killing is not None:
            await killing
            old = networks[f"expert-{victim}"][0].pid
            await asyncio.to_thread(wait_for, server, f"expert-{victim}", old)
            await asyncio.sleep(AFTER)  # the new process loads its network
    return {
        "rate": given.rate,
        "pause": given.pause,
        "killed": killed or None,
        "asked": [[round(each.at, 3), round(each.seconds, 4), *each[2:]] for each in asked],
    }


def quantile(asked: Sequence[Asked], share: float) -> float:
    """Return a quantile of the seconds until an answer, or until a query failed."""
    return float(np.quantile([each.seconds for each in asked], share))


def summary(rounds: Sequence[dict[str, Any]], case: Case) -> dict[str, Any]:
    """Sum up the rounds of a case: for `kill`, the queries after the kill."""
    every: dict[bool, list[Asked]] = {True: [], False: []}
    bounds = []
    for each in rounds:
        asked = [Asked(*one) for one in each["asked"]]
        killed = each["killed"]
        if killed:
            healthy = [a for a in asked if a.coded and a.at < killed["at"] - 1]
            bounds.append(killed["deadline"] + WITHIN * quantile(healthy, 0.95))
            asked = [a for a in asked if 0 <= a.at - killed["at"] < AFTER]
        for one in asked:
            every[one.coded].append(one)
    found: dict[str, Any] = {"case": case, "rounds": len(rounds)}
    for coded, name in ((True, "coded"), (False, "uncoded")):
        asked = every[coded]
        found[name] = {
            "queries": len(asked),
            "failed": sum(each.answer == "failed" for each in asked),
            "decoded": sum(each.answer == "decoded" for each in asked),
            **{f"p{q}": 1e3 * quantile(asked, q / 100) for q in (50, 95, 99)},
        }
    found["ratio"] = found["coded"]["p99"] / found["uncoded"]["p99"]
    if bounds:
        found["bound_ms"] = 1e3 * min(bounds)
    return found


def text(result: dict[str, Any]) -> str:
    """Render all cases as a table."""
    titles = {
        "one": "to one expert, every network paused",
        "all": "to all experts, every network paused",
        "kill": f"to one expert, {AFTER:g} s after a kill",
    }
    rows, bound = [], ""
    for case in CASES:
        rounds = result["rounds"].get(case, {})
        if not rounds:
            continue
        found = summary(list(rounds.values()), case)
        for name in ("uncoded", "coded"):
            of = found[name]
            cells = [f"{of[key]:.0f}" for key in ("p50", "p95", "p99")]
            ratio = f"{found['ratio']:.2f}" if name == "coded" else ""
            rows.append([f"{titles[case]}: {name}", str(of["queries"]), str(of["failed"]),
                         str(of["decoded"]), *cells, ratio])  # fmt: skip
        if "bound_ms" in found:
            bound = (
                f" After the kill, the deadline and {WITHIN} p95 from before it are "
                f"{found['bound_ms']:.0f} ms."
            )
    head = ["queries", "number", "failed", "decoded", "p50 ms", "p95 ms", "p99 ms",
            "p99 coded / uncoded"]  # fmt: skip
    any_round = next(iter(next(iter(result["rounds"].values())).values()))
    return (
        f"{sentence(result['machine'])}. Each of the networks' processes is stopped "
        f"{100 * SHARE:g} % of the time, for {any_round['pause']:g} s; {any_round['rate']:g} "
        f"queries a second.{bound}\n\n" + table(head, rows)
    )


def main() -> None:
    """Run what is missing, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, nargs="?", default=Path("coin-hf-demo/coded"))
    parser.add_argument("--images", type=Path, help="a parquet file; by default the demo's digits")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=600, help="queries of a round")
    parser.add_argument("--rate", type=float, default=8.0, help="queries a second")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that a stop lasts")
    parser.add_argument("--again", action="store_true", help="forget the rounds that are there")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of `coin-hf serve`"
    )
    parser.add_argument("--render", action="store_true", help="only render the result again")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "ray_tail.json")
    given = parser.parse_args()
    result = {} if given.again else read(given.output)
    result.setdefault("rounds", {})
    missing = [
        (case, k)
        for k in range(given.rounds)
        for case in given.cases
        if str(k) not in result["rounds"].get(case, {})
    ]
    if missing and not given.render:
        result["machine"] = describe("cpu", ["ray"])
        images = demo_images(given.images, given.target)
        with serving(given.target, ray_options(given.set)) as server:
            for case, k in missing:
                found = asyncio.run(run_round(server, case, k, images, given))
                result["rounds"].setdefault(case, {})[str(k)] = found
                write_whole(given.output, json.dumps(result) + "\n")
                print(case, k, summary([found], case), flush=True)
    print(text(result))
    if given.output.parent == HERE / "results":
        put(PAGE.with_name("serving.md"), "ray tail", text(result))


if __name__ == "__main__":
    main()

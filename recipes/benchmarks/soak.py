"""A steady load on Ray Serve while a network's process is killed each minute.

    coin-hf demo && python recipes/benchmarks/soak.py [coin-hf-demo/coded] [--seconds 600]

The experts and the coded models are ended by turns, by SIGKILL, in the middle of each minute; Ray
starts each again. Counted are the answers by kind and the failures; at the end /metrics must add up
to the requests sent. The resident memory of every process is noted each `--sample` seconds. Writes
`results/soak.json`, and renders it into `serving.md`. What it shows is whether anything fails or
grows, not how fast anything is.
"""

import argparse
import asyncio
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import describe, sentence
from bench.served import Served, demo_images, ray_options, serving, wait_for
from bench.tables import PAGE, put

from coin_hf.repository.atomic import write_whole
from coin_hf.serve.load import Report, put_load

HERE = Path(__file__).parent
WARM = 40
"""Requests before the load, by which the deadlines are learnt."""


async def disturb(
    server: Served, networks: Sequence[str], seconds: float, every: float
) -> list[dict[str, Any]]:
    """Kill a network's process in the middle of each interval."""
    kills: list[dict[str, Any]] = []
    for k in range(int(seconds / every)):
        await asyncio.sleep(every / 2 if k == 0 else every - kills[-1]["back_after"])
        name = networks[k % len(networks)]
        [victim] = server.parts()[name]
        victim.kill()
        back = await asyncio.to_thread(wait_for, server, name, victim.pid)
        kills.append({"at": every * (k + 0.5), "network": name, "back_after": round(back, 1)})
        print(f"{name} killed, another process after {back:.1f} s", flush=True)
    return kills


async def watch(server: Served, seconds: float, step: float) -> list[dict[str, Any]]:
    """Note the memory of every process, step by step."""
    found = []
    for k in range(int(seconds / step)):
        found.append({"at": round(k * step), **await asyncio.to_thread(server.memory)})
        await asyncio.sleep(step)
    return found


async def soak(
    server: Served, bodies: Sequence[bytes], networks: Sequence[str], given: argparse.Namespace
) -> dict[str, Any]:
    """Put the load on the server and disturb it."""
    kind = "application/octet-stream"
    count = round(given.rate * given.seconds)
    warm = await put_load(server.url, bodies, kind, rate=given.rate, requests=WARM, seed=1)
    report, kills, memory = await asyncio.gather(
        put_load(server.url, bodies, kind, rate=given.rate, requests=count),
        disturb(server, networks, given.seconds, given.every),
        watch(server, given.seconds, given.sample),
    )
    await asyncio.sleep(2)  # several routers report to each other once a second
    sums = await asyncio.to_thread(server.counted)
    return {
        "seconds": given.seconds,
        "rate": given.rate,
        "routers": given.routers,
        "sent": len(warm.asked) + len(report.asked),
        "requests_counted": sums["coin_requests_total"],
        "responses_counted": sums["coin_responses_total"],
        "failed": Counter(str(a.status) for a in (*warm.asked, *report.asked) if a.status != 200),
        "answers": {
            name: dict(Counter(a.answer for a in report.asked if a.expert == name))
            for name in dict.fromkeys(a.expert for a in report.asked)
        },
        "milliseconds": milliseconds(report),
        "kills": kills,
        "memory_mib": memory,
    }


def milliseconds(report: Report) -> dict[str, float]:
    """Return percentiles of all answers."""
    p50, p95, p99 = (round(1e3 * value, 1) for value in report.quantiles())
    return {"p50": p50, "p95": p95, "p99": p99}


def growth(memory: Sequence[dict[str, Any]], part: str) -> tuple[float, float]:
    """Return the median memory of a part in MiB in the second fifth of a run and in the last."""
    fifth = max(1, len(memory) // 5)
    early = [each[part] for each in memory[fifth : 2 * fifth] if part in each]
    late = [each[part] for each in memory[-fifth:] if part in each]
    return statistics.median(early), statistics.median(late)


def text(result: dict[str, Any]) -> str:
    """Render a run as a paragraph."""
    kills, failed = result["kills"], sum(result["failed"].values())
    back = [kill["back_after"] for kill in kills]
    decoded = sum(each.get("decoded", 0) for each in result["answers"].values())
    parts = ("router", "serve", "ProxyActor", "ServeController")
    sizes = [(part, *growth(result["memory_mib"], part)) for part in parts]
    routers = f"{result['routers']} routers, " if result["routers"] > 1 else ""
    grown = ", ".join(f"{part} {early:.0f} to {late:.0f}" for part, early, late in sizes)
    return (
        f"{result['seconds'] / 60:g} minutes at a rate of {result['rate']:g} a second "
        f"({sentence(result['machine'])}), {routers}{len(kills)} kills of a network's process, "
        f"which Ray replaced after {min(back):.1f} to {max(back):.1f} s: {result['sent']} requests "
        f"sent, **{failed} failed**, {decoded} answered by decoding. `/metrics` count "
        f"{result['requests_counted']} answers and {result['responses_counted']} responses. "
        f"Resident memory in MiB, the median of the second fifth of the run and of the last: "
        f"{grown}. Other work shared the cores: the times of this run say nothing."
    )


def main() -> None:
    """Run, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, nargs="?", default=Path("coin-hf-demo/coded"))
    parser.add_argument("--images", type=Path, help="a parquet file; by default the demo's digits")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between kills")
    parser.add_argument("--sample", type=float, default=5.0, help="seconds between memory samples")
    parser.add_argument("--routers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "soak.json")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of `coin-hf serve`"
    )
    parser.add_argument("--render", action="store_true", help="only render the result again")
    given = parser.parse_args()
    if not given.render:
        bodies = demo_images(given.images, given.target)
        with serving(given.target, ray_options(given.set, routers=given.routers)) as server:
            networks = sorted(n for n in server.parts() if n.startswith(("expert-", "coded-")))
            result = asyncio.run(soak(server, bodies, networks, given))
        result["machine"] = describe("cpu", ["ray"])
        write_whole(given.output, json.dumps(result, indent=1) + "\n")
    result = json.loads(given.output.read_text(encoding="utf-8"))
    print(text(result))
    if given.output.parent == HERE / "results":
        put(PAGE.with_name("serving.md"), "soak", text(result))
    counts = {result[key] for key in ("sent", "requests_counted", "responses_counted")}
    if result["failed"] or len(counts) > 1:
        raise SystemExit("requests failed, or are not counted")


if __name__ == "__main__":
    main()

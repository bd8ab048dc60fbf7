"""Which layout of servers when: simulated tails of uncoded, replicas, coded and standby.

    python recipes/experiments/serving.py [--count 20000] [--only SCENARIO ...]

Runs the scenarios below as `coin-hf simulate` does (the coded and the standby layout behind the
router that `coin-hf serve` runs), and what no router can beat where one server is down, by a few
lines without one (`fork_join`). Writes `results/serving.json` beside this file, and from it the
tables and the figure of `serving.md`. All times are in mean service times.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from coin_hf.reports.tables import aligned, number
from coin_hf.repository.atomic import write_whole
from coin_hf.serve.rate_region import rate_region
from coin_hf.serve.simulation import Outcome, Scenario, simulate
from coin_hf.serve.simulation_report import draw, table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "experiments" / "serving.md"
SCENARIOS: dict[str, dict[str, Any]] = {
    "slow-50": {"queries": "all", "slow": {"lasting": 50}, "loads": [0.3]},
    "slow-20": {"queries": "all", "slow": {"lasting": 20}, "loads": [0.3]},
    "all-down-2": {"queries": "all", "down": 1, "loads": [0.3]},
    "all-down-4": {"queries": "all", "experts": 4, "down": 1, "loads": [0.3]},
    "all-down-8": {"queries": "all", "experts": 8, "down": 1, "loads": [0.3]},
    "all-down-8-2": {"queries": "all", "experts": 8, "coded": 2, "down": 1, "loads": [0.3]},
    "one-stragglers": {"stragglers": {}, "loads": [0.2, 0.4, 0.6]},
    "one-stragglers-8": {"experts": 8, "stragglers": {}, "loads": [0.2]},
    "one-down": {"down": 1, "loads": [0.2, 0.4, 0.6]},
    "one-plain-4": {"experts": 4, "loads": [0.3, 0.8]},
}
STRAGGLERS = ((2, 1), (8, 1), (8, 2), (8, 3))
"""N and M of the scenarios in which every query goes to all, and single requests straggle."""
for n, m in STRAGGLERS:
    for suffix, stops in (("", True), ("-on", False)):
        SCENARIOS[f"all-stragglers-{n}-{m}{suffix}"] = {
            "queries": "all", "experts": n, "coded": m, "stragglers": {}, "stops": stops,
            "loads": [0.2],
        }  # fmt: skip
SCENARIOS["all-stragglers-8-1-down"] = {**SCENARIOS["all-stragglers-8-1"], "down": 1}
FIGURE = "one-stragglers"
BOUND = "all-down-bound"
LOAD, SPREAD = 0.3, 0.33
"""Of the servers of the bound, as of the scenarios with one down."""


def fork_join(servers: int, count: int, *, pairs: bool = False, seed: int = 0) -> float:
    """Return the p99 of queries that take an answer of each server, one of which is down.

    Of N + 1 coded servers N are left, each of which every query needs: N queues that are served in
    the order of arrival, nothing to choose, cancel or waste. Of N pairs of replicas, one is a
    single server; the others choose the one that is done first, which no router can know.

    Args:
        servers: N.
        count: Queries.
        pairs: Replicas instead of coded servers.
        seed: Of arrivals and service times.

    Returns:
        The p99 in mean service times, the first tenth of the queries left out.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / LOAD, count)
    took = rng.gamma(SPREAD**-2, SPREAD**2, (count, servers))
    work = np.zeros((servers, 2 if pairs else 1))  # left on each server, in service times
    if pairs:
        work[0, 1] = np.inf
    each, found = np.arange(servers), np.empty(count)
    for k in range(count):
        work = np.maximum(work - gaps[k], 0)
        chosen = work.argmin(axis=1)
        work[each, chosen] += took[k]
        found[k] = work[each, chosen].max()
    return float(np.quantile(found[count // 10 :], 0.99))


def bounds(count: int) -> list[dict[str, Any]]:
    """Return the p99 that is possible with one server down, for several N."""
    return [
        {
            "experts": n,
            "coded": fork_join(n, count),
            "replicas": fork_join(n, count, pairs=True),
        }
        for n in (2, 4, 8, 16)
    ]


def measure(count: int, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Simulate scenarios."""
    found = {}
    for name in names:
        if name == BOUND:
            found[name] = bounds(10 * count)
            continue
        said = SCENARIOS[name]
        outcomes = simulate(Scenario.model_validate({**said, "count": count}))
        found[name] = [asdict(each) for each in outcomes]
        print(name, [(each.layout, each.p99) for each in outcomes], flush=True)
    return found


def outcomes_of(found: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Read outcomes back."""
    return [Outcome(**each) for each in found]


def render(results: dict[str, Any], page: Path) -> None:
    """Put the tables into the page, between their marks, and draw the figure."""
    text = page.read_text(encoding="utf-8")
    parts = {
        name: table(outcomes_of(results[name]), "markdown")
        for name in SCENARIOS
        if not name.startswith("all-stragglers")
    }
    parts[BOUND] = bound_table(results)
    parts["all-stragglers"] = straggler_table(results)
    lone, both = rate_region(2, 1, [[1, 0], [1, 1]])
    parts["region"] = (
        f"Three servers of rate 1 for two experts answer {lone:.0f} queries a second where all are "
        f"for one expert, and {2 * both:.0f} in all for any mix: a region of area 2."
    )
    for name, content in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")
    scenario = Scenario.model_validate(SCENARIOS[FIGURE])
    draw(scenario, outcomes_of(results[FIGURE]), page.with_suffix(".png"))


def bound_table(results: dict[str, Any]) -> str:
    """Render what is possible with one server down beside what the router does."""
    rows = []
    for each in results[BOUND]:
        n, possible, pairs = each["experts"], each["coded"], each["replicas"]
        simulated = results.get(f"all-down-{n}")
        by = {one.layout: one.p99 for one in outcomes_of(simulated or [])}
        rows.append([
            str(n), number(possible, "{:.2f}"), number(by.get("coded"), "{:.2f}", none="-"),
            number(pairs, "{:.2f}"), number(by.get("replicas"), "{:.2f}", none="-"),
            number(possible / pairs, "{:.2f}"),
        ])  # fmt: skip
    head = ["N", "N queues", "coded", "best of pairs", "replicas", "N queues / best of pairs"]
    return aligned(head, rows, "markdown", text=0)


def straggler_table(results: dict[str, Any]) -> str:
    """Render the tails of queries to all experts with stragglers, by N and M."""

    def cells(n: int, layout: str, one: Outcome, more: str, on: Outcome | None) -> list[str]:
        tail = [number(value, none="-") for value in (one.p50, one.p95, one.p99)]
        after = ["-", "-"] if on is None else [number(on.p99), f"{on.work / n:.2f}"]
        return [str(n), layout, str(one.machines), more, *tail, f"{one.work / n:.2f}", *after]

    rows = []
    for n, m in STRAGGLERS:
        name = f"all-stragglers-{n}-{m}"
        stragglers = Scenario.model_validate(SCENARIOS[name]).stragglers
        assert stragglers is not None  # as its name says
        more = f"{100 * binom.sf(m, n + m, stragglers.share):.1f}"
        running_on = outcomes_of(results[f"{name}-on"])
        for one, on in zip(outcomes_of(results[name]), running_on, strict=True):
            if one.layout == "coded":
                rows.append(cells(n, f"coded, M = {m}", one, more, on))
            elif m == 1:
                rows.append(cells(n, one.layout, one, "-", on))
    for one in outcomes_of(results["all-stragglers-8-1-down"]):
        if one.layout != "uncoded":
            rows.append(cells(8, f"{one.layout}, one down", one, "-", None))
    head = ["N", "layout", "machines", "more than M straggle %", "p50", "p95", "p99", "work / N",
            "p99, running on", "work / N, running on"]  # fmt: skip
    return aligned(head, rows, "markdown", text=2)


def main() -> None:
    """Measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20000, help="queries for each layout and load")
    names = [*SCENARIOS, BOUND]
    parser.add_argument("--only", nargs="+", choices=names, help="measure these, keep the rest")
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    file = RESULTS / "serving.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not given.render:
        results |= measure(given.count, given.only or names)
        write_whole(file, json.dumps(results, indent=1) + "\n")
    render(results, PAGE)


if __name__ == "__main__":
    main()

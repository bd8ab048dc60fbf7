"""Which layout of servers when: simulated tails of uncoded, replicas, coded and standby.

    python recipes/experiments/serving.py [--count 20000]

Runs the scenarios below as `coin-hf simulate` does (the coded and the standby layout behind the
router that `coin-hf serve` runs), writes `results/serving.json` beside this file, and from it the
tables and the figure of `serving.md`. All times are in mean service times.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
    "one-stragglers": {"stragglers": {}, "loads": [0.2, 0.4, 0.6]},
    "one-down": {"down": 1, "loads": [0.2, 0.4, 0.6]},
    "one-plain-4": {"experts": 4, "loads": [0.3, 0.8]},
}
FIGURE = "one-stragglers"


def measure(count: int) -> dict[str, list[dict[str, Any]]]:
    """Simulate every scenario."""
    found = {}
    for name, said in SCENARIOS.items():
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
    parts = {name: table(outcomes_of(found), "markdown") for name, found in results.items()}
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


def main() -> None:
    """Measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20000, help="queries for each layout and load")
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    file = RESULTS / "serving.json"
    if not given.render:
        write_whole(file, json.dumps(measure(given.count), indent=1) + "\n")
    render(json.loads(file.read_text(encoding="utf-8")), PAGE)


if __name__ == "__main__":
    main()

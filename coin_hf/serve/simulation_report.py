"""Show what a simulation found: a table, and the p99 as a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coin_hf.reports.tables import Style, aligned, number
from coin_hf.serve.figures import draw_to
from coin_hf.serve.simulation import LAYOUTS, Outcome, Scenario

COLORS = {
    "uncoded": "#b0432f", "replicas": "#3a8f5d", "coded": "#1f4e8c", "standby": "#8a6fb0"
}  # fmt: skip


def table(outcomes: Sequence[Outcome], style: Style = "plain") -> str:
    """Render outcomes as a table.

    Args:
        outcomes: What each layout does under each load.
        style: `plain` for a terminal, or `markdown`.

    Returns:
        One row for each; times in mean service times, shares in percent.
    """
    head = ["load", "layout", "machines", "p50", "p95", "p99", "refused %", "failed %", "work"]
    rows = [
        [
            f"{each.load:g}",
            each.layout,
            str(each.machines),
            *(number(value, none="-") for value in (each.p50, each.p95, each.p99)),
            *(number(100 * share) for share in (each.refused, each.failed)),
            number(each.work, "{:.2f}"),
        ]
        for each in outcomes
    ]
    return aligned(head, rows, style, text=2)


def draw(scenario: Scenario, outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the p99 of each layout against the load.

    Args:
        scenario: What was simulated.
        outcomes: What each layout does under each load.
        path: Where the figure goes, a PNG or SVG file.

    Raises:
        InputError: If it is another kind of file, or cannot be written.
    """

    def axes_of(axes: Any) -> None:
        for layout in LAYOUTS:
            mine = [each for each in outcomes if each.layout == layout]
            label = f"{layout} ({mine[0].machines} machines)"
            loads = [each.load for each in mine]
            tails = [math.nan if each.p99 is None else each.p99 for each in mine]
            axes.plot(loads, tails, "-o", color=COLORS[layout], label=label, markersize=4)
        axes.set_xlabel("load of each uncoded server")
        axes.set_ylabel("p99 (mean service times)")
        every = scenario.queries == "all"
        kind = "every query to all experts" if every else "each query to one expert"
        down = f", {scenario.down} server(s) down" if scenario.down else ""
        axes.set_title(f"N = {scenario.experts}, M = {scenario.coded}: {kind}{down}", fontsize=10)

    draw_to(path, axes_of)

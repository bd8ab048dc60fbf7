"""Draw the result of a run as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coin_hf.evaluation.methods import (
    AVERAGING,
    CODED_ALONE,
    CODED_ALONE_OWN,
    OUTPUT_AVERAGE,
    UNREFINED,
)
from coin_hf.records.result import ResultRecord
from coin_hf.reports.tables import number, title

COLORS = {
    "coin": "#1f4e8c",
    AVERAGING: "#e08a1e",
    UNREFINED: "#e08a1e",
    OUTPUT_AVERAGE: "#b8b8b8",
    CODED_ALONE: "#3a8f5d",
    CODED_ALONE_OWN: "#9ccbae",
}


def figure(result: ResultRecord | Mapping[str, Any], path: Path) -> None:
    """Draw the NDA of every method for each missing expert as grouped bars.

    If several may be missing, a group for each number of them shows the mean over the patterns; a
    method that was not measured on them has no bar there.

    Args:
        result: The result, or the content of its `result.json`.
        path: The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    result = ResultRecord.of(result)
    methods = list(result.mean_nda)
    found = {
        f"'{erasure.missing}' missing": {m: s.nda for m, s in erasure.scores.items()}
        for erasure in result.singles
    }
    for size, means in result.mean_nda_several.items():
        found[f"any {size} missing"] = means
    groups = list(found)
    width = 0.8 / len(methods)
    highest = 100.0  # NDA may exceed it
    canvas = Figure(figsize=(max(6.4, 1.6 * len(groups) + 3.2), 4), layout="constrained")
    FigureCanvasAgg(canvas)  # the file-writing backend, whatever the caller's own is
    axes = canvas.subplots()
    for k, method in enumerate(methods):
        heights = [ndas.get(method) or 0.0 for ndas in found.values()]
        highest = max(highest, *heights)
        places = [g + (k - (len(methods) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places,
            heights,
            0.92 * width,
            label=title(result, method),
            color=COLORS.get(method, "#6b6b6b"),
        )
        labels = [number(ndas[method]) if method in ndas else "" for ndas in found.values()]
        axes.bar_label(bars, labels=labels, fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("normalized decoding accuracy (%)")
    axes.set_ylim(0, 1.12 * highest)  # room for the numbers on the bars
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize=9)
    canvas.savefig(path, dpi=150)

"""The result of a run as a table and as a figure."""

from pathlib import Path
from typing import Any, Literal

from coin_hf.evaluation import NO_CODED_MODEL, OUTPUT_AVERAGE

TITLES = {
    "coin": "COIN",
    "averaging": "plain averaging",
    OUTPUT_AVERAGE: f"{OUTPUT_AVERAGE} (control)",
    NO_CODED_MODEL: f"{NO_CODED_MODEL} (control)",
}
"""How tables and figures call a method."""


def table(result: dict[str, Any], style: Literal["plain", "markdown"] = "plain") -> str:
    """Render the NDA table of a result.

    Args:
        result: The content of `result.json`.
        style: `plain` for a terminal, `markdown` for a card.

    Returns:
        One row for each missing expert and method, then the averages; NDA, accuracies and
        agreement in percent.
    """
    head = ["missing", "method", "NDA", "accuracy", "expert's own", "agreement", "coding loss"]
    rows = []
    for erasure in result["erasures"]:
        for method, score in erasure["scores"].items():
            rows.append(
                [
                    erasure["missing"],
                    TITLES[method],
                    _number(score["nda"]),
                    _percent(score["decoded_accuracy"]),
                    _percent(erasure["expert_accuracy"]),
                    _percent(score["agreement"]),
                    _number(score["coding_loss"], "{:.4g}", "-"),
                ]
            )
    for method, mean in result["mean_nda"].items():
        rows.append(["average", TITLES[method], _number(mean), "", "", "", ""])
    if style == "markdown":
        lines = [head, ["---", "---", *["---:"] * 5], *rows]
        return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in lines)
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def cell(text: str) -> str:
    """Escape what would end a cell of a markdown table."""
    return text.replace("|", "\\|")


def figure(result: dict[str, Any], path: Path) -> None:
    """Draw the NDA of every method for each missing expert as grouped bars.

    Args:
        result: The content of `result.json`.
        path: The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    erasures = result["erasures"]
    methods = list(result["mean_nda"])
    groups = [erasure["missing"] for erasure in erasures]
    width = 0.8 / len(methods)
    highest = 100.0  # NDA may lie above
    canvas = Figure(figsize=(max(6.4, 1.6 * len(groups) + 3.2), 4), layout="constrained")
    FigureCanvasAgg(canvas)  # the file-writing backend, whatever the caller's own is
    axes = canvas.subplots()
    colors = {"coin": "#1f4e8c", "averaging": "#e08a1e", OUTPUT_AVERAGE: "#b8b8b8"}
    for k, method in enumerate(methods):
        heights = [erasure["scores"][method]["nda"] or 0.0 for erasure in erasures]
        highest = max(highest, *heights)
        places = [g + (k - (len(methods) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places, heights, 0.92 * width, label=TITLES[method], color=colors.get(method, "#6b6b6b")
        )
        labels = [_number(erasure["scores"][method]["nda"]) for erasure in erasures]
        axes.bar_label(bars, labels=labels, fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), [f"'{group}' missing" for group in groups])
    axes.set_ylabel("normalized decoding accuracy (%)")
    axes.set_ylim(0, 1.12 * highest)  # room for the numbers on the bars
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize=9)
    canvas.savefig(path, dpi=150)


def _number(value: float | None, form: str = "{:.1f}", none: str = "n/a") -> str:
    return none if value is None else form.format(value)


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share)

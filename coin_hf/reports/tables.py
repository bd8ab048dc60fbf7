"""The result of a run as a table and as a figure."""

from pathlib import Path
from typing import Any, Literal

from coin_hf.hub.layout import NO_CODED_MODEL, OUTPUT_AVERAGE

Style = Literal["plain", "markdown"]

TITLES = {
    "coin": "COIN",
    "averaging": "plain averaging",
    "task_arithmetic": "task arithmetic",
    "regmean": "RegMean",
    "distillation": "distillation",
    OUTPUT_AVERAGE: f"{OUTPUT_AVERAGE} (control)",
    NO_CODED_MODEL: f"{NO_CODED_MODEL} (control)",
}
"""How tables and figures call a method."""


def title(result: dict[str, Any], method: str) -> str:
    """Return what a run's table and figure call a method.

    Args:
        result: The content of `result.json`.
        method: A key of its `mean_nda`.

    Returns:
        Its title, with the steps behind it that refined the coded models.
    """
    if method != result["coder"]:
        return TITLES[method]
    kept = [each["step"] for each in result.get("refinements", ()) if each["kept"]]
    return " + ".join([TITLES[method], *dict.fromkeys(kept)])


def table(result: dict[str, Any], style: Style = "plain") -> str:
    """Render the NDA table of a result.

    Args:
        result: The content of `result.json`.
        style: `plain` for a terminal, `markdown` for a card.

    Returns:
        One row for each missing expert and method, then the averages; NDA, accuracies and
        agreement in percent. Where several may be missing, a second table with the NDA of each
        further pattern. One sentence where nothing was measured.
    """
    singles = [erasure for erasure in result["erasures"] if not erasure["beside"]]
    if not singles:
        return "not measured yet: run `coin-hf evaluate` on it"
    head = ["missing", "method", "NDA", "accuracy", "expert's own", "agreement", "coding loss"]
    rows = []
    for erasure in singles:
        for method, score in erasure["scores"].items():
            rows.append(
                [
                    erasure["missing"],
                    title(result, method),
                    _number(score["nda"]),
                    _percent(score["decoded_accuracy"]),
                    _percent(erasure["expert_accuracy"]),
                    _percent(score["agreement"]),
                    _number(score["coding_loss"], "{:.4g}", "-"),
                ]
            )
    for method, mean in result["mean_nda"].items():
        rows.append(["average", title(result, method), _number(mean), "", "", "", ""])
    parts = [_aligned(head, rows, style)]
    if len(singles) < len(result["erasures"]):
        parts += [_which(result), _patterns(result, style)]
    return "\n\n".join(parts)


def _which(result: dict[str, Any]) -> str:
    """Say which patterns the second table holds."""
    most = max(map(int, result["mean_nda_several"]))
    counted = result["patterns"]
    sampled = ""
    if counted["measured"] < counted["possible"]:
        sampled = f" ({counted['measured']} of {counted['possible']} patterns were measured, drawn)"
    several = f"{most}" if most == 2 else f"2 to {most}"
    return f"NDA where {several} experts are missing at once{sampled}:"


def _patterns(result: dict[str, Any], style: Style) -> str:
    """Render the NDA of every pattern of more than one missing expert, methods side by side."""
    methods = list(result["mean_nda"])
    rows = [
        [e["missing"], ", ".join(e["beside"]), *(_nda(e["scores"].get(m)) for m in methods)]
        for e in result["erasures"]
        if e["beside"]
    ]
    for size, means in result["mean_nda_several"].items():
        cells = [_number(means[m]) if m in means else "-" for m in methods]
        rows.append(["average", f"any {int(size) - 1}", *cells])
    return _aligned(["missing", "also missing", *(title(result, m) for m in methods)], rows, style)


def _aligned(head: list[str], rows: list[list[str]], style: Style) -> str:
    """Lay out a table; the first two columns are text, the others numbers."""
    if style == "markdown":
        lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
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

    Where several may be missing, a group for each number of them shows the mean over the patterns.

    Args:
        result: The content of `result.json`.
        path: The PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(result["mean_nda"])
    found = {
        f"'{erasure['missing']}' missing": {m: s["nda"] for m, s in erasure["scores"].items()}
        for erasure in result["erasures"]
        if not erasure["beside"]
    }
    for size, means in result["mean_nda_several"].items():
        found[f"any {size} missing"] = means
    groups = list(found)
    width = 0.8 / len(methods)
    highest = 100.0  # NDA may lie above
    canvas = Figure(figsize=(max(6.4, 1.6 * len(groups) + 3.2), 4), layout="constrained")
    FigureCanvasAgg(canvas)  # the file-writing backend, whatever the caller's own is
    axes = canvas.subplots()
    colors = {"coin": "#1f4e8c", "averaging": "#e08a1e", OUTPUT_AVERAGE: "#b8b8b8"}
    for k, method in enumerate(methods):
        heights = [ndas.get(method) or 0.0 for ndas in found.values()]
        highest = max(highest, *heights)
        places = [g + (k - (len(methods) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places,
            heights,
            0.92 * width,
            label=title(result, method),
            color=colors.get(method, "#6b6b6b"),
        )
        labels = [_number(ndas.get(method)) for ndas in found.values()]
        axes.bar_label(bars, labels=labels, fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("normalized decoding accuracy (%)")
    axes.set_ylim(0, 1.12 * highest)  # room for the numbers on the bars
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize=9)
    canvas.savefig(path, dpi=150)


def _number(value: float | None, form: str = "{:.1f}", none: str = "n/a") -> str:
    return none if value is None else form.format(value)


def _nda(score: dict[str, Any] | None) -> str:
    return "-" if score is None else _number(score["nda"])


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share)

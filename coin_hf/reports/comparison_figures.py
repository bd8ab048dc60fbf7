"""Draw a comparison as figures: bars, NDA against samples, NDA against epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coin_hf.evaluation.methods import NO_CODED_MODEL
from coin_hf.reports.comparison_table import title

COLORS = {
    "coin": "#1f4e8c",
    "averaging": "#e08a1e",
    "task_arithmetic": "#3a8f5c",
    "regmean": "#a33b5e",
    "distillation": "#7a5ca8",
}
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def write_figures(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the figures of a comparison.

    Args:
        result: The content of its `result.json`.
        folder: Where the PNG files go.

    Returns:
        `nda.png`, with bars for each missing expert, or lines if there are several numbers of
        samples; and `epochs.png` if a coder was trained.
    """
    written = [folder / "nda.png"]
    if len({entry["samples"] for entry in result["summary"]}) > 1:
        samples_figure(result, written[0])
    else:
        bars_figure(result, written[0])
    if any(row["history"] for row in result["rows"]):
        written.append(folder / "epochs.png")
        epochs_figure(result, written[-1])
    return written


def bars_figure(result: dict[str, Any], path: Path) -> None:
    """Draw the mean NDA of each method as grouped bars, one group for each missing expert.

    Args:
        result: The content of `result.json`; thin lines show one standard deviation each way.
        path: The PNG file.
    """
    summary = result["summary"]
    names = [expert["name"] for expert in result["experts"]]
    groups = [*(f"'{name}' missing" for name in names), "average"]
    canvas, axes = _canvas(max(6.4, 1.9 * len(groups) + 2))
    width, highest = 0.84 / len(summary), 100.0
    for k, entry in enumerate(summary):
        found = [*entry["nda"].values(), entry["mean_nda"]]
        heights = [one["mean"] or 0.0 for one in found]
        errors = [one["std"] or 0.0 for one in found]
        highest = max(highest, *(h + e for h, e in zip(heights, errors, strict=True)))
        places = [g + (k - (len(summary) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places,
            heights,
            0.92 * width,
            yerr=errors if any(errors) else None,
            error_kw={"elinewidth": 0.8},
            color=_color(entry),
            alpha=_shade(entry, summary),
            label=title(entry),
        )
        labels = ["n/a" if one["mean"] is None else f"{one['mean']:.1f}" for one in found]
        axes.bar_label(bars, labels=labels, fontsize=6, padding=1)
    for g, name in enumerate(names):
        control = result["controls"][NO_CODED_MODEL]["nda"][name]
        if control is not None:
            label = NO_CODED_MODEL if g == 0 else None
            axes.plot([g - 0.45, g + 0.45], [control] * 2, ":", color="#6b6b6b", lw=1, label=label)
    axes.set_xticks(range(len(groups)), groups)
    _finish(canvas, axes, path, 1.1 * highest)


def samples_figure(result: dict[str, Any], path: Path) -> None:
    """Draw the mean NDA of each method against P, with bands of one standard deviation.

    Args:
        result: The content of `result.json`.
        path: The PNG file.
    """
    canvas, axes = _canvas(6.4)
    names = list(dict.fromkeys(entry["name"] for entry in result["summary"]))
    for k, name in enumerate(names):
        found = [entry for entry in result["summary"] if entry["name"] == name]
        found = [entry for entry in found if entry["mean_nda"]["mean"] is not None]
        if not found:
            continue
        x = [entry["samples"] for entry in found]
        y = [entry["mean_nda"]["mean"] for entry in found]
        e = [entry["mean_nda"]["std"] or 0.0 for entry in found]
        color, mark = _color(found[0]), MARKS[k % len(MARKS)]
        axes.plot(x, y, color=color, marker=mark, ms=4, label=title(found[0]))
        low = [value - error for value, error in zip(y, e, strict=True)]
        high = [value + error for value, error in zip(y, e, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    axes.set_xscale("log")
    ticks = sorted({entry["samples"] for entry in result["summary"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("samples P")
    _finish(canvas, axes, path, None)


def epochs_figure(result: dict[str, Any], path: Path) -> None:
    """Draw the NDA of trained methods on their samples and on held-out ones, by epoch.

    The rows of the first seed and the largest P are drawn; the test NDA at the end is a star.

    Args:
        result: The content of `result.json`.
        path: The PNG file.
    """
    canvas, axes = _canvas(6.4)
    trained = [row for row in result["rows"] if row["history"]]
    most, seed = max(row["samples"] for row in trained), trained[0]["seed"]
    drawn = [row for row in trained if (row["samples"], row["seed"]) == (most, seed)]
    for k, row in enumerate(drawn):
        color = _color(row) if k == 0 else f"C{k}"
        for part, line in (("train", "-"), ("held_out", "--")):
            points = [entry for entry in row["history"] if "nda" in entry.get(part, {})]
            label = f"{title(row)}, {part.replace('_', '-')}"
            x = [entry["epoch"] for entry in points]
            y = [entry[part]["nda"] for entry in points]
            if points:
                axes.plot(x, y, line, color=color, label=label)
        if row["mean_nda"] is not None:
            end = row["history"][-1]["epoch"]
            axes.plot(
                [end], [row["mean_nda"]], "*", ms=10, color=color, label=f"{title(row)}, test"
            )
    for row in result["rows"]:
        same = (row["samples"], row["seed"]) == (most, seed)
        if same and not row["history"] and row["mean_nda"] is not None:
            axes.axhline(row["mean_nda"], color=_color(row), lw=1.5)
            axes.text(0, row["mean_nda"], f" {title(row)}, test", fontsize=7, va="bottom")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(canvas, axes, path, None)


def _canvas(width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, 4.2), layout="constrained")
    FigureCanvasAgg(canvas)  # the file-writing backend, whatever the caller's own is
    return canvas, canvas.subplots()


def _finish(canvas: Any, axes: Any, path: Path, top: float | None) -> None:
    axes.set_ylabel("normalized decoding accuracy (%)")
    axes.set_ylim(bottom=0 if top else None, top=top)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize=8)
    canvas.savefig(path, dpi=150)


def _color(entry: dict[str, Any]) -> str:
    return COLORS[entry["coder"]]


def _shade(entry: dict[str, Any], summary: Sequence[dict[str, Any]]) -> float:
    """Return an opacity that distinguishes contenders with the same coder."""
    same = [other["name"] for other in summary if other["coder"] == entry["coder"]]
    return 1.0 - 0.5 * same.index(entry["name"]) / len(same)

"""Render a comparison as a table for terminal, markdown or LaTeX."""

from collections.abc import Sequence
from typing import Any, Literal

from coin_hf.evaluation.methods import NO_CODED_MODEL, OUTPUT_AVERAGE
from coin_hf.reports.tables import TITLES, aligned

Style = Literal["plain", "markdown", "latex"]

SIGNS = {
    "lam": {"plain": "λ", "latex": r"$\lambda$"},
    "alpha": {"plain": "α", "latex": r"$\alpha$"},
}
ALONE = {"alone": "alone", "alone_own": "alone, own"}
"""Titles of the NDA of a coded model alone, by key of the summary."""
ESCAPES = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}",
           "^": r"\textasciicircum{}"}  # fmt: skip
"""LaTeX's special characters, escaped."""


def comparison_table(result: dict[str, Any], style: Style = "plain") -> str:
    """Render the summary of a comparison.

    Args:
        result: The content of its `result.json`.
        style: `plain` for a terminal, `markdown`, or `latex` (a `tabular` with booktabs rules).

    Returns:
        One row for each method and number of samples, mean ± standard deviation over the seeds:
        NDA and agreement in percent, where measured also the NDA of the coded model alone (one
        network run for an answer, where decoding runs N for M = 1) and among the labels of the
        missing expert's data ("alone, own"), the coding loss on the test sets, the hyperparameter
        chosen, and for the coding step wall time in seconds, peak memory in MiB, and samples
        passed forward and backward through a network. The controls come last.
    """
    summary, experts = result["summary"], [expert["name"] for expert in result["experts"]]
    several = len({entry["samples"] for entry in summary}) > 1
    counted = [("$P$" if style == "latex" else "P")] if several else []
    alone = {key: title for key, title in ALONE.items() if any(key in entry for entry in summary)}
    named = "NDA {}" if style == "latex" else "NDA '{}'"
    head = ["method", *counted, *(named.format(name) for name in experts), "NDA", "agreement"]
    head += alone.values()
    head += ["coding loss", "chosen", "s", "MiB", "forward", "backward"]
    rows = [_row(entry, several, list(alone), style) for entry in summary]
    for name in (OUTPUT_AVERAGE, NO_CODED_MODEL):
        found = result["controls"][name]
        ndas = [_number(found["nda"][expert], "{:.1f}") for expert in experts]
        mean = _number(found["mean_nda"], "{:.1f}")
        rows.append([TITLES[name], *("" for _ in counted), *ndas, mean, *[""] * (7 + len(alone))])
    return _latex(head, rows) if style == "latex" else aligned(head, rows, style, text=1)


def title(entry: dict[str, Any]) -> str:
    """Return a contender's name in tables and figures."""
    if entry["name"] == entry["coder"]:
        return TITLES[entry["coder"]]
    return str(entry["name"])


def _row(entry: dict[str, Any], several: bool, alone: Sequence[str], style: Style) -> list[str]:
    def spread(found: dict[str, Any], form: str, scale: float = 1.0) -> str:
        if found["mean"] is None:
            return "n/a"
        mean = form.format(scale * found["mean"])
        if found["std"] is None:
            return mean
        sign = r" $\pm$ " if style == "latex" else " ± "
        return mean + sign + form.format(scale * found["std"])

    return [
        title(entry),
        *([str(entry["samples"])] if several else []),
        *(spread(found, "{:.1f}") for found in entry["nda"].values()),
        spread(entry["mean_nda"], "{:.1f}"),
        spread(entry["agreement"], "{:.1f}", 100),
        *(spread(entry[key], "{:.1f}") if key in entry else "n/a" for key in alone),
        spread(entry["coding_loss"], "{:.3g}"),
        _chosen(entry, style),
        _number(entry["seconds"]["mean"], "{:.1f}"),
        _number(entry["peak_memory"]["mean"], "{:.0f}", 2**-20),
        str(entry["passes"]["forward"]),
        str(entry["passes"]["backward"]),
    ]


def _chosen(entry: dict[str, Any], style: Style) -> str:
    if entry["key"] is None:
        return "-"
    sign = SIGNS[entry["key"]]["latex" if style == "latex" else "plain"]
    values = sorted(set(entry["values"]))
    return f"{sign} = {', '.join(f'{value:g}' for value in values)}"


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "n/a" if value is None else form.format(scale * value)


def _latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(row: Sequence[str]) -> str:
        first = "".join(ESCAPES.get(character, character) for character in row[0])
        return f"  {' & '.join([first, *row[1:]])} \\\\"

    names = ["".join(ESCAPES.get(c, c) if c != "$" else c for c in text) for text in head]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"  \toprule",
            line(names),
            r"  \midrule",
            *map(line, rows[:-2]),
            r"  \midrule",
            *map(line, rows[-2:]),
            r"  \bottomrule",
            r"\end{tabular}",
        ]
    )

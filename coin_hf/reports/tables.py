"""Render the result of a run as a table."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from coin_hf.evaluation.methods import (
    ALONE_CONTROLS,
    AVERAGING,
    CODED_ALONE,
    CODED_ALONE_OWN,
    NO_CODED_MODEL,
    OUTPUT_AVERAGE,
    UNREFINED,
)
from coin_hf.records.measurements import Score
from coin_hf.records.result import ResultRecord

Style = Literal["plain", "markdown"]

TITLES = {
    "coin": "COIN",
    AVERAGING: "plain averaging",
    UNREFINED: "plain averaging",
    "task_arithmetic": "task arithmetic",
    "regmean": "RegMean",
    "distillation": "distillation",
    OUTPUT_AVERAGE: f"{OUTPUT_AVERAGE} (control)",
    NO_CODED_MODEL: f"{NO_CODED_MODEL} (control)",
    CODED_ALONE: CODED_ALONE,
    CODED_ALONE_OWN: CODED_ALONE_OWN,
}
"""Names of the methods in tables and figures."""
SHOWN = 10
"""Labels of an expert that a table lists."""


def title(result: ResultRecord, method: str) -> str:
    """Return the name of a method in a run's table and figure.

    Args:
        result: The result.
        method: A key of its `mean_nda`.

    Returns:
        Its title, followed by the steps that refined the coded models.
    """
    if method != result.coder:
        return TITLES[method]
    return " + ".join([TITLES[method], *result.steps])


def table(result: ResultRecord | Mapping[str, Any], style: Style = "plain") -> str:
    """Render the NDA table of a result.

    Args:
        result: The result, or the content of its `result.json`.
        style: `plain` for a terminal, `markdown` for a card.

    Returns:
        One row for each missing expert and method, then the averages; NDA, accuracies and
        agreement in percent, and how many networks run for one answer, in results that have it. If
        several may be missing, a second table with the NDA of each further pattern, without the
        coded model alone: its answers are those of the first table. One sentence if nothing was
        measured.
    """
    result = ResultRecord.of(result)
    if not result.singles:
        return "not measured yet: run `coin-hf evaluate` on it"
    head = ["missing", "method", "NDA", "accuracy", "expert's own", "agreement", "coding loss"]
    counted = any(s.networks is not None for e in result.singles for s in e.scores.values())
    head += ["runs"] if counted else []
    rows = [
        [
            erasure.missing,
            title(result, method),
            number(score.nda),
            _percent(score.decoded_accuracy),
            _percent(erasure.expert_accuracy),
            _percent(score.agreement),
            number(score.coding_loss, "{:.4g}", "-"),
            *([number(score.networks, "{}", "-")] if counted else []),
        ]
        for erasure in result.singles
        for method, score in erasure.scores.items()
    ]
    for method, mean in result.mean_nda.items():
        rows.append(["average", title(result, method), number(mean), *[""] * (len(head) - 3)])
    parts = [aligned(head, rows, style, text=2)]
    if len(result.singles) < len(result.erasures):
        parts += [_which(result), _patterns(result, style)]
    if style == "plain" and result.label_sets is not None:
        parts.append(labels_table(result))
    return "\n\n".join(parts)


def alone_note(result: ResultRecord) -> str:
    """Say what the rows of the coded model alone and the column of runs are, for a card.

    Args:
        result: The result.

    Returns:
        The sentences, each line after a line break; empty where no such row was measured.
    """
    if CODED_ALONE not in result.mean_nda:
        return ""
    told = CODED_ALONE_OWN in result.mean_nda
    own = ", or of those for the labels of\nthe missing expert's data (*own labels*)" * told
    logits = f"*Coded model alone* takes the largest of the coded model's own logits{own}."
    return f"\n{logits} *Runs* counts the networks\nthat run for one answer."


def labels_table(result: ResultRecord, style: Style = "plain") -> str:
    """Render the experts' labels, where they have label sets of their own.

    Args:
        result: The result.
        style: `plain` for a terminal, `markdown` for a card.

    Returns:
        One row for each expert: its labels, and what decoding its answer takes.
    """
    sets = result.label_sets
    rows = []
    for i, expert in enumerate(result.experts):
        owned = range(result.num_classes) if sets is None else sets.rows[i]
        own = expert.labels or [str(row) for row in owned]
        others = range(len(result.experts)) if sets is None else sets.sharing(i)
        needed = [result.experts[j].name for j in others if j != i]
        rows.append(
            [
                expert.name,
                few(own),
                f"coded model and {', '.join(needed)}" if needed else "coded model alone",
            ]
        )
    return aligned(["expert", "labels", "decoded from"], rows, style, text=3)


def few(labels: Sequence[str]) -> str:
    """List labels, the first of many.

    Args:
        labels: The labels.

    Returns:
        At most `SHOWN` of them, and how many more there are.
    """
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more


def _which(result: ResultRecord) -> str:
    """Return the caption of the second table: the patterns it holds."""
    most = max(map(int, result.mean_nda_several))
    counted = result.patterns
    sampled = ""
    if counted.measured < counted.possible:
        sampled = f" ({counted.measured} of {counted.possible} patterns were measured, drawn)"
    several = f"{most}" if most == 2 else f"2 to {most}"
    return f"NDA where {several} experts are missing at once{sampled}:"


def _patterns(result: ResultRecord, style: Style) -> str:
    """Render the NDA of every pattern of more than one missing expert, methods side by side."""
    methods = [method for method in result.mean_nda if method not in ALONE_CONTROLS]
    rows = [
        [e.missing, ", ".join(e.beside), *(_nda(e.scores.get(m)) for m in methods)]
        for e in result.erasures
        if e.beside
    ]
    for size, means in result.mean_nda_several.items():
        cells = [number(means[m]) if m in means else "-" for m in methods]
        rows.append(["average", f"any {int(size) - 1}", *cells])
    head = ["missing", "also missing", *(title(result, m) for m in methods)]
    return aligned(head, rows, style, text=2)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], style: Style, *, text: int) -> str:
    """Lay out a table.

    Args:
        head: Titles of the columns.
        rows: The cells.
        style: `plain` for a terminal, or `markdown`.
        text: Number of leading text columns, aligned left; the others are numbers.

    Returns:
        The table.
    """
    if style == "markdown":
        rule = ["---"] * text + ["---:"] * (len(head) - text)
        return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in [head, rule, *rows])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            word.ljust(width) if i < text else word.rjust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def cell(text: str) -> str:
    """Escape the characters that would end a markdown table cell.

    Args:
        text: The cell.

    Returns:
        The escaped text.
    """
    return text.replace("|", "\\|")


def number(value: float | None, form: str = "{:.1f}", none: str = "n/a") -> str:
    """Format a number for a table.

    Args:
        value: The number; None if unknown.
        form: Its format string.
        none: The text for None.

    Returns:
        The text.
    """
    return none if value is None else form.format(value)


def _nda(score: Score | None) -> str:
    return "-" if score is None else number(score.nda)


def _percent(share: float | None) -> str:
    return number(None if share is None else 100 * share)

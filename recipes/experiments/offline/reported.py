"""The paper's own tables, and its numbers beside ours where the data have the same name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kept import HERE
from rendering import DATASETS, FOUNDATIONS, NDA, TABLES, Kept, column, contenders, markdown

from coin_hf.reports.tables import TITLES

REPORTED = HERE.parents[1] / "paper" / "reported.json"
SETS = DATASETS | {"cifar10": "CIFAR-10", "low": "1–5", "high": "6–10"}
"""What experts and columns are called; the paper counts labels from 1."""
Columns = dict[str, dict[str, Any]]
"""The paper's columns by recipe: `experts`, and `nda` by coder: of each, and their average."""


def reported(file: Path = REPORTED) -> Columns:
    """Read the paper's numbers."""
    columns: Columns = json.loads(file.read_text("utf-8"))["columns"]
    return columns


def beside(kept: Kept, columns: Columns) -> str:
    """Render the paper's NDA and ours, for the columns that both have."""
    common = [name for name in columns if any(name in found for found in kept.values())]
    each = {name: [found.get(name) for found in kept.values()] for name in common}
    titles = contenders(result for results in each.values() for result in results if result)
    rows = []
    for name, text in titles.items():
        cells = []
        for experiment, results in each.items():
            entries = [
                next((one for one in result["summary"] if one["name"] == name), None)
                if result
                else None
                for result in results
            ]
            plain = next((one["coder"] for one in entries if one), "")
            own = columns[experiment]["nda"].get(plain)
            theirs = f"{own[2]:.1f}" if own and "+" not in name else "-"
            ours = [NDA.shown(one["mean_nda"] if one else None, std=False) for one in entries]
            cells.append(" / ".join([theirs, *ours]))
        rows.append([text, *cells])
    heading = " / ".join(["the paper", *(FOUNDATIONS.get(name, name) for name in kept)])
    return markdown([f"NDA (%), {heading}", *map(_title, common)], rows)


def whole(columns: Columns, table: str) -> str:
    """Render one table of the paper: a column for each expert and the average."""
    names = [name for name in columns if name.startswith(f"{table}-")]
    head = ["NDA (%)"]
    for name in names:
        experts = [SETS[expert] for expert in columns[name]["experts"]]
        # Halves of one dataset need its name, too.
        head += experts if " + " in _title(name) else [f"{_title(name)} {e}" for e in experts]
        head.append("average")
    rows = [
        [TITLES[coder], *(f"{nda:.2f}" for name in names for nda in columns[name]["nda"][coder])]
        for coder in columns[names[0]]["nda"]
    ]
    return markdown(head, rows)


def section(kept: Kept, columns: Mapping[str, dict[str, Any]] | None = None) -> str:
    """Render everything that the page says of the paper's numbers."""
    found = dict(columns or reported())
    parts = [beside(kept, found)] if kept else []
    for table, (name, what) in TABLES.items():
        parts += [f"The paper's {name}, {what}:", whole(found, table)]
    return "\n\n".join(parts)


def _title(name: str) -> str:
    """Name a column of the paper."""
    text = column(name)
    return text.replace("cifar10", SETS["cifar10"])

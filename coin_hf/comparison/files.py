"""Save a comparison beside its rows: result.json, tables, figures."""

import json
from pathlib import Path
from typing import Any

from coin_hf.reports.comparison_figures import write_figures
from coin_hf.reports.comparison_table import comparison_table
from coin_hf.repository.atomic import write_whole


def save_comparison(result: dict[str, Any], folder: Path) -> Path:
    """Write the result of a comparison, with the tables and figures rendered from it.

    Args:
        result: The content of `result.json`.
        folder: Output folder for `result.json`, `table.md`, `table.tex`, `nda.png`, and
            `epochs.png` if a coder was trained.

    Returns:
        The folder.
    """
    folder = folder.expanduser()
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
    write_whole(folder / "table.md", comparison_table(result, "markdown") + "\n")
    write_whole(folder / "table.tex", comparison_table(result, "latex") + "\n")
    write_figures(result, folder)
    return folder

"""Render the result of a run as a table or a figure."""

import html
from pathlib import Path

from coin_hf.records.result import ResultRecord
from coin_hf.reports.drawn_result import result_drawing
from coin_hf.reports.figures import figure
from coin_hf.reports.tables import Style, table


class Result(ResultRecord):
    """Every number of a run, from `encode`, `evaluate` or `recode`.

    Attributes and keys are those of `result.json`; `result["mean_nda"]` gives plain data,
    `result.dump()` all of it.

    Example:
        result = encode(recipe).result
        print(result.table())  # NDA, accuracy, agreement and coding loss of every erasure
        result.mean_nda["coin"]  # percent
    """

    def table(self, style: Style = "plain") -> str:
        """Render the NDA of every missing expert and method.

        Args:
            style: `plain` for a terminal, or `markdown`.

        Returns:
            The table, or one sentence if nothing was measured.
        """
        return table(self, style)

    def figure(self, path: str | Path) -> None:
        """Draw the NDA of every method for each missing expert.

        Args:
            path: The PNG file to write.
        """
        figure(self, Path(path))

    def _repr_html_(self) -> str:
        """Show the table and an erasure in a notebook."""
        table = html.escape(self.table())
        return f"{result_drawing(self)}<pre style='overflow-x:auto'>{table}</pre>"

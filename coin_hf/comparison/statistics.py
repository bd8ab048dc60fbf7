"""Summarise a comparison's rows: mean and standard deviation over the seeds."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from coin_hf.evaluation.methods import (
    CODED_ALONE,
    CODED_ALONE_OWN,
    NO_CODED_MODEL,
    OUTPUT_AVERAGE,
)

Row = dict[str, Any]

ALONE = {"alone": CODED_ALONE, "alone_own": CODED_ALONE_OWN}
"""Keys of the summary: what a row's coded model answers alone, and the control that measures it."""
MEASURES = ("mean_nda", "agreement", "coding_loss", "seconds", "peak_memory")
"""Numbers of a row that the summary gives with mean and standard deviation."""


def singles(row: Row) -> list[dict[str, Any]]:
    """Return a row's erasures of a single expert."""
    return [erasure for erasure in row["erasures"] if not erasure["beside"]]


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Summarise the rows over the seeds.

    Args:
        rows: The rows.

    Returns:
        For each contender and number of samples, in the rows' order: name, coder, samples, seeds,
        `nda` by missing expert (one alone), and each of `MEASURES`, as `{mean, std}` (the sample
        standard deviation, None for one seed; both are None if a seed has no number), the passes,
        and the values chosen; and the mean NDA of the coded model alone, `alone` and `alone_own`,
        in groups of which a row measured it.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["per_expert"]), []).append(row)
    return [
        {
            **{key: group[0][key] for key in ("name", "coder", "per_expert", "samples")},
            "seeds": [row["seed"] for row in group],
            "nda": {
                erasure["missing"]: _spread(
                    [singles(row)[i]["scores"][row["name"]]["nda"] for row in group]
                )
                for i, erasure in enumerate(singles(group[0]))
            },
            **{key: _spread([row[key] for row in group]) for key in MEASURES},
            **{
                key: _spread([_mean_nda(row, control) for row in group])
                for key, control in ALONE.items()
                if any(control in singles(row)[0]["scores"] for row in group)
            },
            "passes": group[0]["passes"],
            "key": None if group[0]["choice"] is None else group[0]["choice"]["key"],
            "values": [row["value"] for row in group],
        }
        for group in groups.values()
    ]


def controls(row: Row) -> dict[str, Any]:
    """Return the controls' NDA, by missing expert and on average: no coder affects it.

    Args:
        row: Any row.

    Returns:
        `nda` by missing expert and `mean_nda`, by control, in percent.
    """
    found = {}
    for control in (OUTPUT_AVERAGE, NO_CODED_MODEL):
        ndas = {e["missing"]: e["scores"][control]["nda"] for e in singles(row)}
        found[control] = {"nda": ndas, "mean_nda": average_of(list(ndas.values()))}
    return found


def _mean_nda(row: Row, method: str) -> float | None:
    """Return a method's NDA averaged over the missing experts; None if a row does not have it."""
    scores = [erasure["scores"].get(method) for erasure in singles(row)]
    return average_of([None if each is None else each["nda"] for each in scores])


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": mean(known), "std": stdev(known) if len(known) > 1 else None}


def average_of(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is unknown."""
    return _spread(values)["mean"]

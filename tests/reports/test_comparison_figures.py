"""Figures of a comparison: what is drawn where, read from the pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from comparison_results import entry, result
from PIL import Image

from coin_hf.reports.comparison_figures import write_figures

BLUE = np.array([0x1F, 0x4E, 0x8C])
PURPLE = np.array([0x7A, 0x5C, 0xA8])


def data(*entries: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {**result(*entries), "rows": rows or [{"history": []}]}


def where(path: Path, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.nonzero(np.abs(pixels - color).sum(2) < 12)


def test_bars_are_as_high_as_their_numbers(tmp_path: Path) -> None:
    def height(nda: float) -> int:
        one = entry("coin", "coin", nda)
        one["nda"] = {"cats": {"mean": nda, "std": None}, "dogs": {"mean": nda, "std": None}}
        assert write_figures(data(one), tmp_path) == [tmp_path / "nda.png"]
        rows, _ = where(tmp_path / "nda.png", BLUE)
        many = np.flatnonzero(np.bincount(rows) > 150)  # the legend's patch is narrower
        return int(many.max() - many.min())

    assert height(100.0) > 200
    assert abs(height(100.0) - 2 * height(50.0)) <= 4


def test_several_numbers_of_samples_make_a_line(tmp_path: Path) -> None:
    entries = [
        entry("coin", "coin", nda, samples=p) for p, nda in ((20, 50.0), (200, 75.0), (2000, 75.0))
    ]
    write_figures(data(*entries), tmp_path)
    rows, columns = where(tmp_path / "nda.png", BLUE)
    curve = rows < rows.max() - 100  # the legend lies below
    left, right = columns[curve].min(), columns[curve].max()
    at = {x: rows[curve & (np.abs(columns - x) < 4)].mean() for x in (left + 3, right - 3)}
    assert at[left + 3] > at[right - 3] + 50  # the first point lies lower
    middle = rows[curve & (np.abs(columns - (left + right) / 2) < 4)].mean()
    assert abs(middle - at[right - 3]) < 8  # decades are evenly spaced, the second half is flat


def test_epochs_are_drawn_where_something_was_trained(tmp_path: Path) -> None:
    history = [
        {"epoch": e, "train": {"nda": 60.0 + 4 * e}, "held_out": {"nda": 60.0}} for e in range(11)
    ]
    row = {
        "name": "distillation",
        "coder": "distillation",
        "seed": 0,
        "samples": 16,
        "mean_nda": 61.0,
        "history": history,
    }
    other = {**row, "name": "coin", "coder": "coin", "mean_nda": 90.0, "history": []}
    one = entry("distillation", "distillation", 60.0)
    written = write_figures(data(one, rows=[row, other]), tmp_path)
    assert [path.name for path in written] == ["nda.png", "epochs.png"]
    rows, columns = where(tmp_path / "epochs.png", PURPLE)
    assert len(rows) > 200
    blue, _ = where(tmp_path / "epochs.png", BLUE)
    assert len(blue) > 50  # the untrained method's line
    curve = rows < rows.max() - 80
    left, right = columns[curve].min(), columns[curve].max()
    top_left = rows[curve & (columns < left + 10)].min()
    top_right = rows[curve & (columns > right - 30)].min()
    assert top_right < top_left - 150  # training rises, held-out stays

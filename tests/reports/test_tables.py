"""Tables and figures of a result."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from builders import plain_result
from PIL import Image

from coin_hf.records.result import ResultRecord
from coin_hf.reports.figures import figure
from coin_hf.reports.tables import alone_note, table


def score(nda: float | None, loss: float | None = 0.125) -> dict[str, Any]:
    accuracy = None if nda is None else nda / 200
    return {"nda": nda, "decoded_accuracy": accuracy, "agreement": 0.75, "coding_loss": loss}


def result(coin: float | None = 80.0) -> dict[str, Any]:
    """Two erasures by hand; the second expert is never right."""
    return plain_result(
        erasures=[
            {
                "missing": "cats",
                "beside": [],
                "points": 8,
                "expert_accuracy": 0.5,
                "scores": {"coin": score(coin), "no coded model": score(12.5, None)},
            },
            {
                "missing": "dogs",
                "beside": [],
                "points": 8,
                "expert_accuracy": 0.0,
                "scores": {"coin": score(None, 1234567.0), "no coded model": score(None, None)},
            },
        ],
        mean_nda={"coin": None, "no coded model": 6.25},
    )


def test_plain_table() -> None:
    assert table(result()).splitlines() == [
        "missing  method                     NDA  accuracy  expert's own  agreement  coding loss",
        "-------  ------------------------  ----  --------  ------------  ---------  -----------",
        "cats     COIN                      80.0      40.0          50.0       75.0        0.125",
        "cats     no coded model (control)  12.5       6.2          50.0       75.0            -",
        "dogs     COIN                       n/a       n/a           0.0       75.0    1.235e+06",
        "dogs     no coded model (control)   n/a       n/a           0.0       75.0            -",
        "average  COIN                       n/a",
        "average  no coded model (control)   6.2",
    ]


def with_alone() -> dict[str, Any]:
    """The same, with the coded model alone and the networks that run; two may be missing."""
    data = result()
    for erasure in data["erasures"]:
        for method, runs in (("coin", 2), ("no coded model", 1)):
            erasure["scores"][method]["networks"] = runs
        erasure["scores"] |= {
            "output average": score(100.0, 0.0),
            "coded model alone": {**score(40.0, None), "networks": 1},
            "coded alone, own labels": {**score(60.0, None), "networks": 1},
        }
    pair = {**data["erasures"][0], "beside": ["dogs"], "scores": {"coin": score(50.0)}}
    return {
        **data,
        "erasures": [*data["erasures"], pair],
        "mean_nda": {**data["mean_nda"], "coded model alone": 40.0, "coded alone, own labels": 60},
        "mean_nda_several": {"2": {"coin": 50.0}},
    }


def test_the_coded_model_alone_and_what_each_answer_costs() -> None:
    lines = table(with_alone()).splitlines()
    assert len(lines[0]) < 100
    assert [re.split(r"\s{2,}", line) for line in lines[2:8]] == [
        ["cats", "COIN", "80.0", "40.0", "50.0", "75.0", "0.125", "2"],
        ["cats", "no coded model (control)", "12.5", "6.2", "50.0", "75.0", "-", "1"],
        ["cats", "output average (control)", "100.0", "50.0", "50.0", "75.0", "0", "-"],
        ["cats", "coded model alone", "40.0", "20.0", "50.0", "75.0", "-", "1"],
        ["cats", "coded alone, own labels", "60.0", "30.0", "50.0", "75.0", "-", "1"],
        ["dogs", "COIN", "n/a", "n/a", "0.0", "75.0", "1.235e+06", "2"],
    ]
    assert "average  coded alone, own labels    60.0" in lines
    head = next(line for line in lines if line.startswith("missing  also missing"))
    assert head.split("  ") == ["missing", "also missing", "COIN", "no coded model (control)"]


def test_a_note_explains_them_where_they_are() -> None:
    assert alone_note(ResultRecord.of(result())) == ""
    both = alone_note(ResultRecord.of(with_alone()))
    assert "own labels" in both
    assert "networks" in both
    data = with_alone()
    del data["mean_nda"]["coded alone, own labels"]
    assert "own labels" not in alone_note(ResultRecord.of(data))


def test_the_figure_has_no_bar_for_what_was_not_measured(tmp_path: Path) -> None:
    figure(with_alone(), tmp_path / "nda.png")
    green = np.abs(pixels(tmp_path / "nda.png") - np.array([0x3A, 0x8F, 0x5D])).sum(2) < 12
    columns = np.flatnonzero(green.sum(0) > 60)
    bars = 1 + int((np.diff(columns) > 1).sum())
    assert bars == 2  # of either expert, none of both


def test_markdown_table_has_the_same_cells() -> None:
    plain, markdown = table(result()), table(result(), "markdown")
    lines = markdown.splitlines()
    assert lines[0].startswith("| missing | method | NDA |")
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {7}
    assert cells[2] == ["cats", "COIN", "80.0", "40.0", "50.0", "75.0", "0.125"]
    for row, line in zip(cells[2:], plain.splitlines()[2:], strict=True):
        assert " ".join(row).split() == line.split()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_figure_shows_the_numbers(tmp_path: Path) -> None:
    blue = np.array([0x1F, 0x4E, 0x8C])

    def height(nda: float) -> int:
        """Pixels between the lowest and the highest blue above the legend."""
        figure(result(nda), tmp_path / "nda.png")
        data = pixels(tmp_path / "nda.png")
        rows = np.flatnonzero((np.abs(data - blue).sum(2) < 12).sum(1) > 60)
        return int(rows.max() - rows.min())

    half, whole = height(50.0), height(100.0)
    assert whole > 200
    assert abs(whole - 2 * half) <= 4


def test_a_bar_above_100_is_not_cut_off(tmp_path: Path) -> None:
    figure(result(250.0), tmp_path / "nda.png")
    data = pixels(tmp_path / "nda.png")
    blue = np.abs(data - np.array([0x1F, 0x4E, 0x8C])).sum(2) < 12
    black = data.max(2) < 90
    spine = black[:, black.sum(0).argmax()]  # the left axis: the column with the most black
    top_of_axes, top_of_bar = np.flatnonzero(spine).min(), np.flatnonzero(blue.sum(1) > 60).min()
    assert top_of_bar > top_of_axes + 10

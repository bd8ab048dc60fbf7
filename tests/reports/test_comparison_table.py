"""Tables of a comparison: the same cells for terminal, markdown and LaTeX."""

from typing import Any

import pytest
from comparison_results import entry, result

from coin_hf.reports.comparison_table import comparison_table


def test_plain() -> None:
    lines = comparison_table(result()).splitlines()
    assert lines[0].split("  ")[0] == "method"
    assert " ".join(lines[2].split()) == (
        "COIN 88.0 ± 1.2 n/a 88.0 50.0 ± 1.2 0.0123 ± 0.001 λ = 0.01, 0.1 12.3 300 32 320"
    )
    assert " ".join(lines[3].split()).startswith("R&D_1 70.0 ± 1.2 n/a 70.0")
    assert " ".join(lines[3].split()).endswith("- 12.3 300 32 320")
    assert lines[4].split() == ["output", "average", "(control)", "20.0", "n/a", "n/a"]
    assert lines[5].startswith("no coded model (control)")
    width = len(lines[1])
    assert all(len(line) <= width for line in lines)


def test_markdown_has_the_same_cells() -> None:
    plain, markdown = comparison_table(result()), comparison_table(result(), "markdown")
    lines = markdown.splitlines()
    assert lines[1] == "| --- |" + 10 * " ---: |"
    assert len({line.count("|") for line in lines}) == 1
    for mine, other in zip(lines[2:], plain.splitlines()[2:], strict=True):
        assert mine.replace("|", " ").split() == other.split()


def test_latex_escapes_names_and_is_balanced() -> None:
    lines = comparison_table(result(), "latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrrrrr}"
    assert lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in body} == {10}
    assert len(body) == 5
    assert r"R\&D\_1 & 70.0 $\pm$ 1.2" in body[2]
    assert r"$\lambda$ = 0.01, 0.1" in body[1]
    assert all(line.count("$") % 2 == 0 for line in body)


def test_several_numbers_of_samples_get_a_column() -> None:
    rows = [entry("coin", "coin", 80.0), entry("coin", "coin", 90.0, samples=32, per_expert=16)]
    lines = comparison_table(result(*rows)).splitlines()
    assert lines[0].split()[:2] == ["method", "P"]
    assert [line.split()[1] for line in lines[2:4]] == ["16", "32"]
    assert "& $P$ &" in comparison_table(result(*rows), "latex")


def test_the_coded_model_alone_has_columns_of_its_own() -> None:
    def spread(mean: float | None) -> dict[str, Any]:
        return {"mean": mean, "std": None}

    alone = {"alone": spread(61.26), "alone_own": spread(None)}
    rows = [entry("coin", "coin", 80.0, **alone), entry("averaging", "averaging", 70.0)]
    lines = comparison_table(result(*rows), "markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    at = cells[0].index("agreement")
    assert cells[0][at + 1 : at + 3] == ["alone", "alone, own"]
    assert [row[at + 1 : at + 3] for row in cells[2:4]] == [["61.3", "n/a"], ["n/a", "n/a"]]
    assert {len(row) for row in cells} == {13}
    body = comparison_table(result(*rows), "latex").splitlines()
    assert body[0] == r"\begin{tabular}{lrrrrrrrrrrrr}"
    assert {line.count("&") for line in body if line.endswith(r"\\")} == {12}
    assert "alone" not in comparison_table(result())


@pytest.mark.parametrize("style", ["plain", "markdown", "latex"])
def test_what_is_not_known_is_said(style: Any) -> None:
    unknown = {"mean": None, "std": None}
    text = comparison_table(result(entry("coin", "coin", None, peak_memory=unknown)), style)
    assert "None" not in text
    assert text.count("n/a") >= 4

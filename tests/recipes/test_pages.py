"""Pages of experiments hold what their committed results say."""

import json
import re
from pathlib import Path

import pytest
from recipe_scripts import script

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "recipes" / "experiments"
PAGES = ROOT / "docs" / "pages" / "experiments"


@pytest.mark.parametrize(
    ("name", "kept"),
    [("labels", "labels"), ("serving", "serving"), ("probes", "probes_offline")],
)
def test_a_page_is_rendered_from_its_results(name: str, kept: str, tmp_path: Path) -> None:
    page = tmp_path / f"{name}.md"
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    emptied = re.sub(
        r"(<!-- (?!probes)[\w-]+: begin -->\n).*?(<!-- [\w-]+: end -->)",
        r"\1\2",
        text,
        flags=re.S,
    )  # the marks `probes` are those of a comparison by the command line
    assert emptied != text
    page.write_text(emptied, encoding="utf-8")
    results = json.loads((EXPERIMENTS / "results" / f"{kept}.json").read_text(encoding="utf-8"))
    with script(EXPERIMENTS / f"{name}.py") as module:
        module["render"](results, page)
    assert page.read_text(encoding="utf-8") == text


def rows_of_labels() -> list[str]:
    cases = json.loads((EXPERIMENTS / "results" / "labels.json").read_text(encoding="utf-8"))
    found = []
    for case in cases:
        if case["classes"] == "separate" and case["case"] in ("0-5, 4-9", "0-3, 3-6, 6-9"):
            ndas = {row["name"]: row["mean_nda"] for row in case["rows"]}
            found.append(
                f"| MNIST {case['case']}, `separate` | {case['no coded model']:.1f} "
                f"| {ndas['averaging']:.1f} | {ndas['coin']:.1f} | {ndas['COIN + layerwise']:.1f} |"
            )
    return found


def rows_of_texts() -> list[str]:
    said = json.loads((EXPERIMENTS / "text" / "results.json").read_text(encoding="utf-8"))
    with script(EXPERIMENTS / "text" / "study.py") as study:
        labels = study["LABELS"]
    found = []
    for case in said["cases"]:
        if case["rate"] == "high":
            continue
        ndas = {row["name"]: row["mean_nda"] for row in case["rows"]}
        kind = "adapters" if case["rate"] == "adapters" else "texts"
        found.append(
            f"| {kind}: {case['case']} ({labels[case['case']]}) | {case['no coded model']:.1f} "
            f"| {ndas['averaging']:.1f} | {ndas['coin']:.1f} | {ndas['COIN + layerwise']:.1f} |"
        )
    return sorted(found, reverse=True)


def test_the_table_of_kinds_is_of_the_results() -> None:
    page = (PAGES / "index.md").read_text(encoding="utf-8")
    table = page.partition("<!-- kinds -->\n")[2].partition("<!-- /kinds -->")[0]
    shown = table.splitlines()[2:]
    assert shown == [*rows_of_labels(), *rows_of_texts()]


def test_the_routers_cost_is_as_measured() -> None:
    found = json.loads((ROOT / "recipes/benchmarks/results/router.json").read_text())
    page = (PAGES / "serving.md").read_text(encoding="utf-8")
    assert f"takes {found['alone_ms']:.0f} ms" in page
    assert f"adds {found['added_ms']:.2f} ms" in page
    assert f"at {found['throughput']:.2f} times" in page


def test_the_study_of_probes_tells_what_its_scores_say() -> None:
    """Races and choices by hand, from the scores that are kept."""
    file = EXPERIMENTS / "results" / "probes_offline.json"
    with script(EXPERIMENTS / "probes.py") as study:
        for case in json.loads(file.read_text(encoding="utf-8")):
            for row in case["rows"]:
                scores = row["scores"]
                ranked = sorted(scores["all"], key=lambda e: (-e["nda"], e["coding_loss"]))
                assert study["full"](row) == ranked[0]["value"]
                early = sorted(scores["20"], key=lambda e: e["coding_loss"])
                kept = [entry["value"] for entry in early[: 2 if len(early) == 6 else 7]]
                taken = next(entry["value"] for entry in ranked if entry["value"] in kept)
                assert study["raced"](row, 20) == taken
                assert {f"{ranked[0]['value']:g}", f"{taken:g}"} <= set(row["test"])


@pytest.mark.parametrize(("name", "mark"), [("soak", "soak"), ("ray_tail", "ray tail")])
def test_the_benchmarks_on_ray_are_rendered_from_their_results(name: str, mark: str) -> None:
    benchmarks = ROOT / "recipes" / "benchmarks"
    file = benchmarks / "results" / f"{name}.json"
    page = (PAGES.parent / "benchmarks" / "serving.md").read_text(encoding="utf-8")
    said = page.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0]
    if not file.exists():
        assert said.strip() == ""  # nothing is claimed that was not measured
        return
    with script(benchmarks / f"{name}.py") as module:
        text = module["text"](json.loads(file.read_text(encoding="utf-8")))
    assert said.strip() == text

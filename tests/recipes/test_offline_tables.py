"""The offline tables: pages show what the kept results hold, recomputed from their rows."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from recipe_scripts import script

from coin_hf.comparison.statistics import controls, summary
from coin_hf.errors import InputError
from coin_hf.reports.comparison_table import comparison_table
from coin_hf.reports.tables import TITLES

ROOT = Path(__file__).parents[2]
OFFLINE = ROOT / "recipes" / "experiments" / "offline"
SCRIPT = OFFLINE / "tables.py"
RESULTS = OFFLINE / "results"
DOCS = ROOT / "docs" / "pages" / "experiments"
PAGES = (DOCS / "offline.md", DOCS / "index.md")
MEASURES = {
    "NDA, in percent": ("nda", 1.0, max),
    "Agreement, in percent": ("agreement", 100.0, max),
    "Coding loss": ("coding_loss", 1.0, min),
}
FOUNDATIONS = {"lite0": "EfficientNet-Lite0", "resnet50": "ResNet50"}
COLUMNS = {
    "Table I": {
        "MNIST": "table1-mnist",
        "Fashion-MNIST": "table1-fashion_mnist",
        "UCI digits": "table1-digits",
    },
    "Table II": {
        "MNIST + Fashion-MNIST": "table2-mnist-fashion_mnist",
        "MNIST + UCI digits": "table2-mnist-digits",
        "Fashion-MNIST + UCI digits": "table2-fashion_mnist-digits",
    },
}
CODERS = {"averaging": "averaging", "RegMean (conv)": "regmean", "distillation": "distillation",
          "coin": "coin", "COIN + layerwise": "coin"}  # fmt: skip
MARKED = "before\n<!-- offline -->\nold\n<!-- /offline -->\nafter\n"
PAPER = "<!-- paper -->\nold\n<!-- /paper -->\nend\n"
REPORTED = ROOT / "recipes" / "paper" / "reported.json"

Kept = Mapping[str, Mapping[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def offline() -> Iterator[dict[str, Any]]:
    with script(SCRIPT) as names:
        yield names


def row(name: str, seed: int, per_expert: int, source: random.Random) -> dict[str, Any]:
    def erasure(missing: str) -> dict[str, Any]:
        scores = {
            "nda": source.uniform(60, 102),
            "agreement": source.uniform(0.5, 1),
            "coding_loss": source.uniform(0.01, 40),
        }
        always = {"agreement": 1.0, "coding_loss": 0.0}
        return {
            "missing": missing,
            "beside": [],
            "points": 500,
            "expert_accuracy": 0.982,
            "scores": {
                name: scores,
                "output average": {"nda": 100.0, **always},
                "no coded model": {"nda": 12.0, **always},
            },
        }

    erasures = [erasure("low"), erasure("high")]
    means = {
        key: sum(e["scores"][name][key] for e in erasures) / 2
        for key in ("nda", "agreement", "coding_loss")
    }
    chosen = {"key": "lam", "by": "nda", "samples": 8, "scores": [{"value": 0.1, "nda": 80.0}]}
    trained = CODERS[name] == "distillation"
    history = [{"epoch": e, "train": {"nda": 70.0 + e}} for e in range(3)]
    return {
        "name": name,
        "coder": CODERS[name],
        "per_expert": per_expert,
        "seed": seed,
        "samples": 2 * per_expert,
        "settings": {"coder": CODERS[name], **({"distillation": {"epochs": 2}} if trained else {})},
        "value": 0.1 if CODERS[name] == "coin" else None,
        "choice": chosen if CODERS[name] == "coin" else None,
        "erasures": erasures,
        "mean_nda": means["nda"],
        "agreement": means["agreement"],
        "coding_loss": means["coding_loss"],
        "seconds": 1.5,
        "peak_memory": 2**28,
        "passes": {"forward": 8, "backward": 80},
        "history": history if trained else [],
    }


def comparison(
    names: Sequence[str], seeds: Sequence[int] = (0, 1, 2), sizes: Sequence[int] = (4,)
) -> dict[str, Any]:
    source = random.Random(str((names, seeds, sizes)))
    rows = [row(name, seed, size, source) for size in sizes for seed in seeds for name in names]
    return of(rows)


def of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    model = "runs/offline/lite0/experts/mnist-"
    return {
        "architecture": "tiny",
        "experts": [{"name": name, "model": model + name} for name in ("low", "high")],
        "summary": summary(rows),
        "controls": controls(rows[0]),
        "rows": rows,
        "run": {"device": "cpu", "versions": {"torch": "2.0"}},
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two foundations, not all experiments, not everywhere the same contenders."""
    few, more = ["averaging", "distillation", "coin"], list(CODERS)
    made = {
        "lite0/table1-mnist": comparison(few),
        "lite0/table1-digits": comparison(more),
        "lite0/table2-mnist-digits": comparison(more, (0, 1)),
        "lite0/fig2a": comparison(few, (0, 1)),
        "lite0/fig2b": comparison(few, (0,), (4, 8)),
        "resnet50/table1-fashion_mnist": comparison(["averaging", "coin"]),
        "resnet50/table1-digits": comparison(["averaging", "COIN + layerwise"], (3,)),
    }
    for name, result in made.items():
        folder = tmp_path / "runs" / "offline" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    (tmp_path / "runs" / "offline" / "resnet50" / "fig2b" / "rows").mkdir(parents=True)
    return tmp_path / "runs" / "offline"


def slow(result: dict[str, Any], name: str, key: str) -> tuple[float, float | None]:
    """Mean over seeds of the mean over the experts missing alone, and the sample's deviation."""
    seeds = []
    for one in result["rows"]:
        if one["name"] == name:
            scores = [e["scores"][name][key] for e in one["erasures"] if e["beside"] == []]
            seeds.append(sum(scores) / len(scores))
    mean = sum(seeds) / len(seeds)
    if len(seeds) == 1:
        return mean, None
    return mean, math.sqrt(sum((x - mean) ** 2 for x in seeds) / (len(seeds) - 1))


def names_of(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["name"] for result in results for one in result["rows"]))


def parsed(text: str) -> dict[tuple[str, str, str], list[list[str]]]:
    """The cells of the tables by foundation, table and measure."""
    found: dict[tuple[str, str, str], list[list[str]]] = {}
    foundation = table = measure = ""
    for line in text.splitlines():
        if line.startswith("## "):
            foundation = line[3:]
        elif line.startswith("### "):
            table = line[4:].partition(":")[0]
        elif line.removesuffix(":") in MEASURES:
            measure = line.removesuffix(":")
        elif line.startswith("| ") and table in COLUMNS:
            cells = [each.strip() for each in line.strip("|").split("|")]
            found.setdefault((foundation, table, measure), []).append(cells)
    return found


def agrees(shown: str, number: float, digits: int | None) -> bool:
    """Whether a number was rounded to what is shown: to a tenth, or to significant digits."""
    unit = 0.1
    if digits is not None and number:
        unit = 10.0 ** (math.floor(math.log10(abs(number))) - digits + 1)
    return abs(float(shown) - number) <= 0.501 * unit + 1e-9  # sums in another order


def check_column(
    cells: Mapping[str, str], result: dict[str, Any], measure: str, *, std: bool
) -> None:
    """The cells of one experiment by contender: each number, and which are bold."""
    key, scale, best = MEASURES[measure]
    digits = 3 if measure == "Coding loss" else None
    names = names_of([result])
    exact = {name: slow(result, name, key) for name in names}
    top = best(scale * mean for mean, _ in exact.values())
    for name, (mean, deviation) in exact.items():
        tie = 0.005 * top if digits else 0.05
        assert cells[name].startswith("**") == (round(abs(scale * mean - top), 9) <= tie), (
            name,
            cells,
        )
        shown, _, spread = cells[name].strip("*").partition(" ± ")
        assert agrees(shown, scale * mean, digits), (name, shown, mean)
        assert bool(spread) == (std and deviation is not None)
        if spread:
            assert agrees(spread, scale * deviation, digits), (name, spread, deviation)
    assert all(text == "-" for name, text in cells.items() if name not in names)


def check_page(text: str, kept: Kept) -> None:
    shown = parsed(text)
    checked = set()
    for foundation, found in kept.items():
        for table, columns in COLUMNS.items():
            here = {title: found[name] for title, name in columns.items() if name in found}
            if not here:
                continue
            names = names_of(list(here.values()))
            for measure in MEASURES:
                place = (FOUNDATIONS[foundation], table, measure)
                head, _, *rows = shown[place]
                assert head == ["method", *here]
                if measure == "NDA, in percent":
                    assert rows[-1][0] == "no coded model (control)"
                    for cell, result in zip(rows.pop()[1:], here.values(), strict=True):
                        alone = [e for e in result["rows"][0]["erasures"] if e["beside"] == []]
                        ndas = [e["scores"]["no coded model"]["nda"] for e in alone]
                        assert agrees(cell, sum(ndas) / len(ndas), None)
                assert [each[0] for each in rows] == [TITLES.get(name, name) for name in names]
                for i, result in enumerate(here.values(), 1):
                    cells = {name: each[i] for name, each in zip(names, rows, strict=True)}
                    check_column(cells, result, measure, std=True)
                checked.add(place)
        for name, result in found.items():
            end = "" if name == "ablation" else "\n\n</details>"
            assert f"\n\n{comparison_table(result, 'markdown')}{end}" in text, name
    assert checked == set(shown)


def check_short(text: str, kept: Kept) -> None:
    """The README's table: a row an experiment, a column a contender, a number a foundation."""
    head, _, *rows = [
        [each.strip() for each in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    order = [
        (title, {f: found[name] for f, found in kept.items() if name in found})
        for columns in COLUMNS.values()
        for title, name in columns.items()
    ]
    expected = {title: found for title, found in order if found}
    assert [each[0] for each in rows] == list(expected)
    names = names_of([result for found in expected.values() for result in found.values()])
    assert head == [
        f"NDA (%), {' / '.join(FOUNDATIONS[f] for f in kept)}",
        *(TITLES.get(name, name) for name in names),
    ]
    for (title, *cells), found in zip(rows, expected.values(), strict=True):
        for place, foundation in enumerate(kept):
            each = {n: c.split(" / ")[place] for n, c in zip(names, cells, strict=True)}
            if foundation in found:
                check_column(each, found[foundation], "NDA, in percent", std=False)
            else:
                assert set(each.values()) == {"-"}, title


def between(text: str) -> str:
    return text.partition("<!-- offline -->\n")[2].partition("\n<!-- /offline -->")[0]


def contents(offline: dict[str, Any], kept: Kept) -> dict[str, str]:
    """What the page holds, by the name of its marks."""
    return {"offline": offline["page"](kept), "paper": offline["section"](kept)}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_pages_are_rendered_from_what_is_kept(offline: dict[str, Any]) -> None:
    kept = offline["load"]()
    whole, readme = PAGES
    assert whole.read_bytes() == offline["filled"](whole, **contents(offline, kept)).encode()
    assert readme.read_bytes() == offline["filled"](readme, offline=offline["short"](kept)).encode()
    if kept:
        check_page(between(whole.read_text(encoding="utf-8")), kept)
        check_short(between(readme.read_text(encoding="utf-8")), kept)


def test_the_figures_kept_are_those_of_the_results() -> None:
    expected = set()
    for file in RESULTS.glob("*/*.json"):
        assert file.parent.name in FOUNDATIONS
        assert (OFFLINE / f"{file.stem}.yaml").is_file()
        if file.stem.startswith("fig"):
            expected.add(DOCS / "offline" / file.parent.name / f"{file.stem}.png")
    assert set((DOCS / "offline").glob("*/*")) == expected
    for file in expected:
        with Image.open(file) as image:
            assert image.format == "PNG"
        shown = f"](offline/{file.parent.name}/{file.name})"
        assert shown in PAGES[0].read_text(encoding="utf-8")


def test_a_kept_summary_is_that_of_its_rows() -> None:
    for file in RESULTS.glob("*/*.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        for entry in result["summary"]:
            rows = [r for r in result["rows"] if r["samples"] == entry["samples"]]
            for key in ("mean_nda", "agreement", "coding_loss"):
                mean, std = slow({"rows": rows}, entry["name"], key.removeprefix("mean_"))
                assert entry[key]["mean"] == pytest.approx(mean)
                assert entry[key]["std"] == (None if std is None else pytest.approx(std, abs=1e-9))


@pytest.mark.slow
def test_collected_results_render_to_their_numbers(
    offline: dict[str, Any], runs: Path, tmp_path: Path
) -> None:
    results, whole, readme = tmp_path / "kept", tmp_path / "page.md", tmp_path / "readme.md"
    whole.write_text(MARKED + PAPER, encoding="utf-8")
    readme.write_text(MARKED, encoding="utf-8")
    done = run("collect", runs, "--results", results)
    assert done.returncode == 0, done.stderr
    assert "not finished: lite0/table1-fashion_mnist\n" in done.stderr
    assert "not finished: resnet50/fig2b\n" in done.stderr
    names = {file.relative_to(results).as_posix() for file in results.rglob("*.*")}
    assert names == {
        *(f"lite0/{name}.json" for name in ("table1-mnist", "table1-digits", "fig2a", "fig2b")),
        "lite0/table2-mnist-digits.json",
        "resnet50/table1-fashion_mnist.json",
        "resnet50/table1-digits.json",
    }
    done = run("render", "--results", results, "--page", whole, "--short", readme)
    assert done.returncode == 0, done.stderr
    drawn = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png")}
    assert drawn == {"page/lite0/fig2a.png", "page/lite0/fig2b.png"}
    planned = [name for columns in COLUMNS.values() for name in columns.values()]
    kept = {
        foundation: {
            name: json.loads(file.read_text(encoding="utf-8"))
            for name in (*planned, "fig2a", "fig2b")
            if (file := runs / foundation / name / "result.json").is_file()
        }
        for foundation in FOUNDATIONS
    }
    texts = [each.read_text(encoding="utf-8") for each in (whole, readme)]
    assert texts[0] == offline["filled"](whole, **contents(offline, kept))  # again: nothing changes
    assert texts[1] == offline["filled"](readme, offline=offline["short"](kept))
    for text in texts:
        assert text.startswith("before\n<!-- offline -->\n")
        assert "\n<!-- /offline -->\nafter\n" in text
    assert texts[0].endswith("\n<!-- /paper -->\nend\n")
    assert texts[1].endswith("after\n")
    check_page(between(texts[0]), kept)
    check_short(between(texts[1]), kept)
    assert "Experts right on their test images: low 98.2 % of 500, high 98.2 % of 500." in texts[0]
    assert "P = 8; sample seeds 0, 1, 2; distillation: 2 epochs. Run on cpu" in texts[0]
    assert "P = 8, 16; sample seeds 0; distillation: 2 epochs." in texts[0]
    assert texts[0].count("<details>") == texts[0].count("</details>") == 7


def test_the_papers_numbers_stand_beside_ours() -> None:
    """Every number of reported.json is in the page, and the common columns hold both means."""
    text = PAGES[0].read_text(encoding="utf-8")
    text = text.partition("<!-- paper -->\n")[2].partition("<!-- /paper -->")[0]
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
        for part in text.split("\n\n")
        if part.startswith("|")
    ]
    assert len(tables) == 3
    columns = json.loads(REPORTED.read_text(encoding="utf-8"))["columns"]
    for table, kind in zip(tables[1:], ("table1", "table2"), strict=True):
        for line, coder in zip(table[2:], columns["table1-mnist"]["nda"], strict=True):
            expected = [
                f"{nda:.2f}"
                for name in columns
                if name.startswith(kind)
                for nda in columns[name]["nda"][coder]
            ]
            assert line == [TITLES[coder], *expected]
    names = ("table1-mnist", "table1-fashion_mnist", "table2-mnist-fashion_mnist")
    titles = ["MNIST", "Fashion-MNIST", "MNIST + Fashion-MNIST"]
    assert tables[0][0] == ["NDA (%), the paper / EfficientNet-Lite0 / ResNet50", *titles]
    kept = {
        (foundation, name): json.loads((RESULTS / foundation / f"{name}.json").read_text())
        for foundation in FOUNDATIONS
        for name in names
    }
    for row_ in kept["lite0", names[0]]["summary"]:
        shown = TITLES[row_["coder"]] if row_["name"] == row_["coder"] else row_["name"]
        line = next(line for line in tables[0] if line[0] == shown)
        for cell, name in zip(line[1:], names, strict=True):
            refined = row_["name"] == "COIN + layerwise"
            theirs = "-" if refined else f"{columns[name]['nda'][row_['coder']][2]:.1f}"
            ours = [
                next(one for one in kept[f, name]["summary"] if one["name"] == row_["name"])
                for f in FOUNDATIONS
            ]
            assert cell == " / ".join([theirs, *(f"{one['mean_nda']['mean']:.1f}" for one in ours)])


def test_ties_are_all_bold_and_what_is_not_known_is_said(offline: dict[str, Any]) -> None:
    source = random.Random(0)
    rows = [row(name, 0, 4, source) for name in ("averaging", "distillation", "coin")]
    for one, nda, loss in zip(rows, (90.0, 90.04, 89.94), (0.02, 0.0201, 0.0199), strict=True):
        one.update(mean_nda=nda, coding_loss=loss)
    result = of(rows)
    page = offline["page"]({"lite0": {"table1-digits": result}})
    assert "| plain averaging | **90.0** |" in page
    assert "| distillation | **90.0** |" in page
    assert "| COIN | 89.9 |" in page
    assert "| COIN | **0.0199** |" in page
    assert "| plain averaging | 0.02 |" in page
    rows[0]["mean_nda"] = None
    page = offline["page"]({"lite0": {"table1-digits": of(rows)}})
    assert "| plain averaging | n/a |" in page
    assert "| COIN | 89.9 |" in page
    assert "| UCI digits | n/a | **90.0** | 89.9 |" in offline["short"](
        {"lite0": {"table1-digits": of(rows)}}
    )


def test_without_results_the_pages_say_so(offline: dict[str, Any], tmp_path: Path) -> None:
    kept = offline["load"](tmp_path)
    assert kept == {}
    assert offline["page"](kept) == offline["short"](kept) == "No results are kept yet."


def test_paths_are_kept_as_recipes_write_them(
    offline: dict[str, Any], runs: Path, tmp_path: Path
) -> None:
    file = runs / "resnet50" / "table1-digits" / "result.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    said = result["experts"][0]["model"]
    result["experts"][0]["model"] = str(tmp_path.resolve() / said)
    file.write_text(json.dumps(result), encoding="utf-8")
    offline["collect"](runs, tmp_path / "kept")
    kept = tmp_path / "kept" / "resnet50" / "table1-digits.json"
    assert json.loads(kept.read_text(encoding="utf-8"))["experts"][0]["model"] == said
    text = kept.read_text(encoding="utf-8")
    result["experts"][0]["model"] = "/elsewhere/experts/low"
    file.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(InputError, match=r"a result names /elsewhere/experts/low, which is not"):
        offline["collect"](runs, tmp_path / "kept")
    assert kept.read_text(encoding="utf-8") == text


def test_a_large_result_goes_without_the_scores_of_what_was_tried(
    offline: dict[str, Any], runs: Path, tmp_path: Path
) -> None:
    file = runs / "resnet50" / "table1-digits" / "result.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    chosen = [one for one in result["rows"] if one["choice"]]
    for one in chosen:
        one["choice"]["scores"] *= 5000
    file.write_text(json.dumps(result), encoding="utf-8")
    offline["collect"](runs, tmp_path / "kept")
    kept = tmp_path / "kept" / "resnet50" / "table1-digits.json"
    assert kept.stat().st_size < 10_000
    for one in chosen:
        one["choice"]["scores"] = []
    assert json.loads(kept.read_text(encoding="utf-8")) == result
    small = (tmp_path / "kept" / "lite0" / "table1-digits.json").read_text(encoding="utf-8")
    assert json.loads(small) == json.loads(
        (runs / "lite0" / "table1-digits" / "result.json").read_text(encoding="utf-8")
    )


@pytest.mark.slow
def test_a_page_without_marks_is_named_and_nothing_is_written(runs: Path, tmp_path: Path) -> None:
    whole, readme = tmp_path / "page.md", tmp_path / "readme.md"
    whole.write_text(MARKED + PAPER, encoding="utf-8")
    readme.write_text("no marks\n", encoding="utf-8")
    done = run("render", "--results", runs, "--page", whole, "--short", readme)
    assert done.returncode == 2
    assert f"error: {readme} has no place for the tables: add <!-- offline -->" in done.stderr
    assert whole.read_text(encoding="utf-8") == MARKED + PAPER

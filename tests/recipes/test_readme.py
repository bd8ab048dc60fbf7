"""What README and cards say is what the committed results hold."""

import json
import re
from pathlib import Path

import pytest

from coin_hf.recipe import Recipe
from coin_hf.records.result import ResultRecord
from coin_hf.reports.card import model_card
from coin_hf.reports.comparison_table import comparison_table
from coin_hf.reports.drawn_result import result_drawing
from coin_hf.reports.tables import table

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "recipes" / "experiments"
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = ROOT / "recipes" / "demo.yaml"
DEMO = ROOT / "model_cards" / "demo"
RESULT = json.loads((DEMO / "result.json").read_text(encoding="utf-8"))


def test_the_demos_output_is_the_committed_result() -> None:
    shown = re.search(r"<!-- demo -->\n```\n(.*?)\n```\n<!-- /demo -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1] == table(RESULT)


def test_the_demos_comparison_is_the_committed_result() -> None:
    page = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- compared -->\n```\n(.*?)\n```\n<!-- /compared -->", page, re.DOTALL)
    assert shown is not None
    result = json.loads((DEMO / "compared.json").read_text(encoding="utf-8"))
    assert shown[1] == comparison_table(result)
    said = [contender.label for contender in Recipe.from_yaml(RECIPE).contenders]
    assert [row["name"] for row in result["rows"]] == said


def test_the_table_of_probes_is_the_committed_result() -> None:
    page = (EXPERIMENTS / "probes.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- probes: begin -->\n```\n(.*?)\n```\n", page, re.DOTALL)
    assert shown is not None
    result = json.loads((EXPERIMENTS / "results" / "probes.json").read_text(encoding="utf-8"))
    assert shown[1] == comparison_table(result)
    said = [each.label for each in Recipe.from_yaml(EXPERIMENTS / "probes.yaml").contenders]
    assert [row["name"] for row in result["rows"]] == said * 3  # draws


@pytest.mark.parametrize(
    ("folder", "name"), [("demo", "coded"), ("mnist-fashion_mnist", "coded-mnist-fashion_mnist")]
)
def test_the_cards_are_rendered_from_their_results(folder: str, name: str) -> None:
    place = ROOT / "model_cards" / folder
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    card = (place / "README.md").read_text(encoding="utf-8")
    assert card == str(model_card(result, f"your-name/{name}"))
    drawing = (place / "erasure.svg").read_text(encoding="utf-8")
    assert drawing == result_drawing(ResultRecord.of(result))


def test_ci_runs_the_readmes_two_commands() -> None:
    demo, tests = re.findall(
        r'^pip install -e "\.\[\w+\]" && [\w-]+(?: \w+)?', README, re.MULTILINE
    )
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert demo.replace('".[demo]"', '"$repository[demo]"') in ci.replace("--quiet ", "")
    assert tests in ci.replace("--quiet ", "")


def test_what_refining_costs_is_the_committed_result() -> None:
    path = ROOT / "recipes" / "benchmarks" / "results" / "coding_step.json"
    ratio = json.loads(path.read_text(encoding="utf-8"))["refine_ratio"]
    assert f"On ResNet50 it costs [{ratio:.1f} times](recipes/benchmarks)" in README


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 160


def test_no_number_of_this_machine_or_another_is_in_the_committed_results() -> None:
    for path in [*ROOT.glob("model_cards/**/*.json"), *ROOT.glob("recipes/**/*.json")]:
        assert not re.search(r'"/(home|root|work|tmp|Users)/', path.read_text(encoding="utf-8"))

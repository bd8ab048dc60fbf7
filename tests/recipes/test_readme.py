"""What README and cards say is what the committed results hold."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import digits, make_world
from hub_clients import WRITER, environment
from hub_server import User, serve
from recipe_scripts import script

from coin_hf.recipe import Recipe
from coin_hf.records.result import ResultRecord
from coin_hf.reports.card import model_card
from coin_hf.reports.comparison_table import comparison_table
from coin_hf.reports.drawn_result import result_drawing
from coin_hf.reports.tables import table

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "recipes" / "experiments"
PAGES = ROOT / "docs" / "pages"
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = ROOT / "recipes" / "demo.yaml"
DEMO = ROOT / "model_cards" / "demo"
RESULT = json.loads((DEMO / "result.json").read_text(encoding="utf-8"))


UPLOAD = """
from huggingface_hub import HfApi

for name, kind in (("low", "model"), ("high", "model"), ("digits", "dataset")):
    HfApi().create_repo(f"me/{name}", repo_type=kind)
    HfApi().upload_folder(repo_id=f"me/{name}", folder_path=name, repo_type=kind)
"""


def test_the_demos_output_is_the_committed_result() -> None:
    page = (PAGES / "getting-started.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- demo -->\n```\n(.*?)\n```\n<!-- /demo -->", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == table(RESULT)


def test_the_demos_comparison_is_the_committed_result() -> None:
    page = (PAGES / "experiments" / "index.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- compared -->\n```\n(.*?)\n```\n<!-- /compared -->", page, re.DOTALL)
    assert shown is not None
    result = json.loads((DEMO / "compared.json").read_text(encoding="utf-8"))
    assert shown[1] == comparison_table(result)
    said = [contender.label for contender in Recipe.from_yaml(RECIPE).contenders]
    assert [row["name"] for row in result["rows"]] == said


def test_the_table_of_probes_is_the_committed_result() -> None:
    page = (PAGES / "experiments" / "probes.md").read_text(encoding="utf-8")
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


def read(*parts: str) -> Any:
    return json.loads(ROOT.joinpath(*parts).read_text(encoding="utf-8"))


def test_the_small_table_is_of_the_committed_results() -> None:
    """One row each of the demo's comparison, the codes, the offline tables and the texts."""
    experiments = ("recipes", "experiments")
    demo = {
        row["name"]: row["mean_nda"] for row in read("model_cards", "demo", "compared.json")["rows"]
    }
    [eight] = [
        case
        for case in read(*experiments, "results", "codes.json")
        if (case["experts"], case["coded"]) == (8, 1)
    ]
    pair = read(*experiments, "offline", "results", "lite0", "table2-mnist-fashion_mnist.json")
    means = {entry["name"]: entry["mean_nda"]["mean"] for entry in pair["summary"]}
    [text] = [
        case
        for case in read(*experiments, "text", "results.json")["cases"]
        if (case["case"], case["rate"]) == ("things, topics", "good")
    ]
    texts = {row["name"]: row["mean_nda"] for row in text["rows"]}
    methods = ("averaging", "coin", "COIN + layerwise")
    none = "no coded model"
    rows = {
        "two ResNet50s, digits 0-4 and 5-9 (the demo)": [
            RESULT["mean_nda"][none],
            *(demo[m] for m in methods),
        ],
        "eight ResNet50s, three digits each": [
            *(eight["mean_nda"][m] for m in (none, "averaging", "coin")),
            eight["refined"]["mean_nda"]["coin"],
        ],
        "two EfficientNet-Lite0s, MNIST and Fashion-MNIST": [
            pair["controls"][none]["mean_nda"],
            *(means[m] for m in methods),
        ],
        "two MiniLMs, texts of things and of topics": [
            text[none],
            *(texts[m] for m in methods),
        ],
    }
    lines = ["| NDA (%) of | no coded model | plain averaging | COIN | layerwise |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {k} | {' | '.join(f'{v:.1f}' for v in values)} |" for k, values in rows.items()]
    shown = re.search(r"<!-- methods -->\n(.*?)\n<!-- /methods -->", README, re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == lines


@pytest.mark.slow
@pytest.mark.hub
def test_the_script_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """From two experts on a Hub to a coded model there and back, in a process of its own."""
    make_world(tmp_path)
    digits(slice(0, 1))[0]["image"].save(tmp_path / "seven.png")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    shown = re.search(r"<!-- output -->\n```\n(.*?)```\n<!-- /output -->", README, re.DOTALL)
    assert code is not None
    assert shown is not None
    with serve(tmp_path / "hub", tokens={WRITER: User("me", write=True)}) as hub:
        env = environment(hub.endpoint, tmp_path / "home", WRITER)
        for script_ in (UPLOAD, code[1]):
            done = subprocess.run(
                [sys.executable, "-c", script_],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
        assert "me/high" in hub.read("me/coded", "README.md").decode()
    numbers = re.compile(r"\d+(\.\d+)?")  # the experts here are others
    assert numbers.sub("#", done.stdout) == numbers.sub("#", shown[1])


def test_the_picture_is_drawn_by_its_script(tmp_path: Path) -> None:
    with script(ROOT / "recipes" / "making" / "picture.py") as module:
        module["draw"](tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"erasure-dark.svg", "erasure-light.svg"}
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (PAGES / "assets" / file.name).read_bytes()
        assert f"docs/pages/assets/{file.name}" in README


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
    page = (PAGES / "concepts.md").read_text(encoding="utf-8")
    assert f"On ResNet50 it costs\n[{ratio:.1f} times](benchmarks/index.md)" in page


def test_the_sizes_of_installs_are_the_committed_result() -> None:
    result = read("recipes", "benchmarks", "results", "install_size.json")
    lines = ["| environment | size | most of it |", "| --- | ---: | --- |"]
    for name, entry in result["environments"].items():
        torch = entry["versions"]["torch"].removesuffix("+cpu")
        most = [f"{package} {size:.1f}" for package, size in list(entry["largest"].items())[:3]]
        lines.append(
            f"| torch {torch}, {name.upper()} build | {entry['gigabytes']:.1f} GB "
            f"| {', '.join(most)} |"
        )
    page = (PAGES / "getting-started.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- sizes -->\n(.*?)\n<!-- /sizes -->", page, re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == lines


def test_the_size_of_an_environment_is_that_of_its_files(tmp_path: Path) -> None:
    packages = tmp_path / "small" / "lib" / "python3.11" / "site-packages"
    for name, version in (("coin_hf", "0.2.0"), ("torch", "2.0+cpu")):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        name = name.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "torch").mkdir()
    (packages / "torch" / "torch.so").write_bytes(bytes(3_000_000))
    (packages / "link").symlink_to(packages / "torch" / "torch.so")
    with script(ROOT / "recipes" / "benchmarks" / "install_size.py") as module:
        entry = module["measure"](tmp_path / "small")
        with pytest.raises(SystemExit, match="is no virtual environment"):
            module["measure"](packages)
    assert entry["gigabytes"] == entry["largest"]["torch"] == 0.003
    assert entry["versions"] == {"coin-hf": "0.2.0", "torch": "2.0+cpu"}
    assert entry["python"] == "3.11"


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 120


def test_no_number_of_this_machine_or_another_is_in_the_committed_results() -> None:
    for path in [*ROOT.glob("model_cards/**/*.json"), *ROOT.glob("recipes/**/*.json")]:
        assert not re.search(r'"/(home|root|work|tmp|Users)/', path.read_text(encoding="utf-8"))

"""The comparison: rows are encodes, shared test sets, kept work, refusals, processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import recipe_dict, save_timm, timm_model

from coin_hf.comparison.compare import compare
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation.erasures import evaluate_erasures
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe
from coin_hf.reports.comparison_table import comparison_table

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]
CODERS: list[Any] = [
    "averaging",
    "task_arithmetic",
    {"coder": "regmean", "name": "all maps", "regmean": {"mode": "conv"}},
    "distillation",
    "coin",
]
TIMES = ("seconds", "steps", "peak_memory")
"""What differs from run to run."""


def given(world: Path, start: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        **recipe_dict(world),
        "output": str(output),
        "lam": "auto",
        "samples": {"per_expert": 4, "held_out": 0.25},
        "evaluation": {"limit": 20, "batch_size": 8},
        "task_arithmetic": {"foundation": str(start)},
        "distillation": {"epochs": 1, "lr": 1e-4, "batch_size": 5},
        "compare": {"coders": CODERS, "seeds": [0, 1]},
        **changes,
    }


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(tmp_path_factory.mktemp("start") / "start", timm_model(7))


@pytest.fixture(scope="module")
def compared(world: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("compared") / "out"
    return {**compare(Recipe.from_dict(given(world, start, output))), "folder": output}


def same_rows(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for key in one.keys() | other.keys():
            if key not in TIMES:
                assert close(one[key], other[key]), (one["name"], key, one[key], other[key])


def close(a: Any, b: Any) -> bool:
    """Equal plain data, numbers to a relative 1e-4: processes round differently."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, rel=1e-4) if isinstance(a, float) else a == b


def test_rows_are_seeds_times_contenders(compared: dict[str, Any]) -> None:
    names = ["averaging", "task_arithmetic", "all maps", "distillation", "coin"]
    assert [(row["name"], row["seed"]) for row in compared["rows"]] == [
        (name, seed) for seed in (0, 1) for name in names
    ]
    assert [entry["name"] for entry in compared["summary"]] == names
    assert all(entry["seeds"] == [0, 1] for entry in compared["summary"])
    for row in compared["rows"]:
        assert row["samples"] == 8
        assert row["seconds"] == pytest.approx(
            sum(v for k, v in row["steps"].items() if k != "log")
        )
        assert row["peak_memory"] is None or row["peak_memory"] > 2**27
        assert bool(row["history"]) == (row["coder"] == "distillation")
        controls = [e["scores"]["no coded model"] for e in row["erasures"]]
        first = [e["scores"]["no coded model"] for e in compared["rows"][0]["erasures"]]
        assert controls == first  # the same test images in every row
    passes = {row["name"]: row["passes"] for row in compared["rows"]}
    assert passes == {
        "averaging": {"forward": 0, "backward": 0},
        "task_arithmetic": {"forward": 22 * 2, "backward": 0},
        "all maps": {"forward": 6, "backward": 0},
        "distillation": {"forward": 12 + 6, "backward": 6},
        "coin": {"forward": 12 + 8 * 2, "backward": 120},
    }


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_row_is_what_encode_finds(
    number: int, compared: dict[str, Any], world: Path, start: Path
) -> None:
    row = compared["rows"][number]  # of seed 0, whose test images encode draws too
    recipe = Recipe.from_dict(given(world, start, Path("unused"), coder=row["coder"]))
    result = encode(recipe).result
    assert result["choice"] == row["choice"]
    for mine, other in zip(row["erasures"], result["erasures"], strict=True):
        assert mine["scores"][row["name"]] == other["scores"][row["coder"]]
        assert mine["expert_accuracy"] == other["expert_accuracy"]
    assert row["mean_nda"] == pytest.approx(result["mean_nda"][row["coder"]])


def test_seeds_draw_other_samples(compared: dict[str, Any]) -> None:
    losses = {row["seed"]: row["coding_loss"] for row in compared["rows"] if row["name"] == "coin"}
    assert losses[0] != losses[1]
    plain = [row["coding_loss"] for row in compared["rows"] if row["name"] == "averaging"]
    assert plain[0] == plain[1]  # it looks at no sample


def test_kept_rows_are_not_computed_again(
    compared: dict[str, Any], world: Path, start: Path
) -> None:
    folder = compared["folder"]
    rows = sorted((folder / "rows").iterdir())
    assert len(rows) == 10
    before = {path.name: path.stat().st_mtime_ns for path in rows}
    (folder / "rows" / "coin.4.1.json").unlink()
    (folder / "rows" / ".coin.4.1.json.tmp").write_text('{"half": ')  # as a kill leaves it
    recipe = given(world, start, folder)
    again = compare(Recipe.from_dict(recipe))
    after = {path.name: path.stat().st_mtime_ns for path in sorted((folder / "rows").iterdir())}
    assert {name for name in before if before[name] != after[name]} == {"coin.4.1.json"}
    same_rows(again["rows"], compared["rows"])

    # Another seed and fewer coders: the rows in common are taken from the folder.
    recipe["compare"] = {"coders": ["averaging", "coin"], "seeds": [1, 2]}
    more = compare(Recipe.from_dict(recipe))
    assert [(row["name"], row["seed"]) for row in more["rows"]] == [
        ("averaging", 1), ("coin", 1), ("averaging", 2), ("coin", 2),
    ]  # fmt: skip
    assert more["rows"][1] == again["rows"][9]


def test_another_recipe_is_refused_by_its_first_differing_key(
    compared: dict[str, Any], world: Path, start: Path
) -> None:
    folder = compared["folder"]

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            compare(Recipe.from_dict(given(world, start, folder, **changes)))

    refused(
        r"is of another recipe, 'samples\.per_expert' differs: restore",
        samples={"per_expert": 5, "held_out": 0.25},
    )
    refused(r"'betas\.0' differs", betas=[0.25, 0.75])
    refused(r"'evaluation\.limit' differs", evaluation={"limit": 10, "batch_size": 8})
    refused(
        r"holds rows of 'distillation' with other settings, 'distillation\.epochs' differs",
        distillation={"epochs": 2, "lr": 1e-4, "batch_size": 5},
    )
    refused(r"'lam' differs: restore it, or give the entry another `name`", lam=0.1)
    refused(r"holds rows of 'task_arithmetic' with other settings, 'race' differs", race=False)


def test_a_folder_of_something_else_is_left_alone(
    world: Path, start: Path, tmp_path: Path, coin_hf: Command
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    recipe = write(tmp_path, given(world, start, tmp_path / "out"))
    code, out, err = coin_hf("compare", recipe)
    assert (code, out) == (2, "")
    assert "holds something else than results of coin-hf: choose another `output`" in err
    code, out, err = coin_hf("compare", recipe, "-o", f"output={recipe}")
    assert (code, out) == (2, "")
    assert "recipe.yaml is a file: choose another `output`" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_row_is_not_named_like_a_control(world: Path, start: Path, tmp_path: Path) -> None:
    named = {"coders": [{"coder": "averaging", "name": "coded model alone"}], "seeds": [0]}
    recipe = Recipe.from_dict(given(world, start, tmp_path / "out", compare=named))
    with pytest.raises(InputError, match="'coded model alone' is the name of a control: give"):
        compare(recipe)


def test_the_coded_model_alone_is_measured_for_each_row(compared: dict[str, Any]) -> None:
    for entry in compared["summary"]:
        rows = [row for row in compared["rows"] if row["name"] == entry["name"]]
        for key, control in (
            ("alone", "coded model alone"),
            ("alone_own", "coded alone, own labels"),
        ):
            means = [
                sum(e["scores"][control]["nda"] for e in row["erasures"]) / len(row["erasures"])
                for row in rows
            ]
            assert entry[key]["mean"] == pytest.approx(sum(means) / len(means))
    head = comparison_table(compared).splitlines()[0]
    assert "agreement" in head.partition("alone")[0]
    assert "alone, own" in head


def test_the_command_line_shows_and_saves(
    compared: dict[str, Any], world: Path, start: Path, tmp_path: Path, coin_hf: Command
) -> None:
    folder = compared["folder"]
    recipe = write(tmp_path, given(world, start, folder))
    code, out, err = coin_hf("compare", recipe)
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[2:]] == [
        "plain averaging", "task arithmetic", "all maps", "distillation", "COIN",
        "output average (control)", "no coded model (control)",
    ]  # fmt: skip
    assert f"saved to {folder}" in err
    assert {path.name for path in folder.iterdir()} == {
        "recipe.json", "rows", "result.json", "table.md", "table.tex", "nda.png", "epochs.png",
    }  # fmt: skip
    code, out, _ = coin_hf("compare", recipe, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "result.json").read_text())
    code, out, _ = coin_hf("compare", recipe, "--style", "latex")
    assert (code, out) == (0, (folder / "table.tex").read_text())
    code, out, err = coin_hf("compare", recipe, "--style", "html")
    assert (code, out) == (2, "")
    assert "there is no table style 'html': take plain, markdown or latex" in err
    code, out, err = coin_hf("compare", recipe, "-o", "output=null")
    assert (code, out) == (2, "")
    assert "a comparison needs a folder: add `output: FOLDER`" in err
    (folder / "rows" / "averaging.4.0.json").write_text('{"half')
    code, out, err = coin_hf("compare", recipe)
    assert (code, out) == (2, "")
    assert "averaging.4.0.json is not JSON" in err
    assert "remove it, and resume" in err
    (folder / "rows" / "averaging.4.0.json").write_text(json.dumps(compared["rows"][0]))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "foundation": (
        {"task_arithmetic": {"foundation": "ODD"}},
        "does not match the experts: 'fc.weight' has shape (7, ",
    ),
    "held out": (
        {"samples": {"held_out": 0.25}, "compare": {"coders": ["averaging"], "per_expert": [8, 2]}},
        "samples.held_out = 0.25 of 2 samples per expert leaves one part empty",
    ),
    "too few images": (
        {"compare": {"coders": ["averaging"], "per_expert": [2, 2000]}},
        "but 2000 were asked for",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_the_first_row(
    case: str, world: Path, start: Path, tmp_path: Path, coin_hf: Command
) -> None:
    changes, message = BAD[case]
    odd = save_timm(tmp_path / "odd", timm_model(num_classes=7))
    recipe = {**given(world, start, tmp_path / "out"), **changes}
    text = yaml.safe_dump(recipe).replace("ODD", str(odd))
    (tmp_path / "recipe.yaml").write_text(text)
    code, out, err = coin_hf("compare", tmp_path / "recipe.yaml")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in sentence
    assert list((tmp_path / "out" / "rows").iterdir()) == []


@pytest.mark.slow
def test_a_kill_loses_at_most_one_row(
    world: Path, start: Path, tmp_path: Path, compared: dict[str, Any]
) -> None:
    recipe = given(world, start, tmp_path / "out")
    recipe["compare"] = {"coders": ["averaging", "coin"], "seeds": [0, 1]}
    path, rows = write(tmp_path, recipe), tmp_path / "out" / "rows"
    command = [sys.executable, "-m", "coin_hf", "compare", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (rows / "averaging.4.0.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {file.name: file.read_bytes() for file in rows.glob("[!.]*")}
    assert "averaging.4.0.json" in kept
    assert len(kept) < 4
    result = compare(Recipe.from_dict(recipe))
    assert all((rows / name).read_bytes() == content for name, content in kept.items())
    expected = [row for row in compared["rows"] if row["name"] in ("averaging", "coin")]
    same_rows(result["rows"], expected)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_find_the_same(
    world: Path, start: Path, tmp_path: Path, compared: dict[str, Any]
) -> None:
    recipe = given(world, start, tmp_path / "out")
    recipe["compare"] = {"coders": CODERS, "seeds": [0]}
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "coin_hf"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "compare", str(write(tmp_path, recipe)), "--json"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object and nothing else: one process talked
    assert result["run"]["processes"] == 2
    same_rows(result["rows"], compared["rows"][:5])
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 5


def test_several_numbers_of_samples(world: Path, start: Path, tmp_path: Path) -> None:
    recipe = given(world, start, tmp_path / "out", samples={"per_expert": 4}, lam=0.1)
    recipe["compare"] = {"coders": ["coin"], "seeds": [3], "per_expert": [2, 6]}
    before = torch.get_rng_state()
    result = compare(Recipe.from_dict(recipe))
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["samples"] for row in result["rows"]] == [4, 12]
    assert [entry["samples"] for entry in result["summary"]] == [4, 12]
    assert result["rows"][0]["value"] == 0.1
    assert result["rows"][0]["choice"] is None


def test_several_coded_models(
    world: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[ErasureCode] = []

    def spied(*args: Any, **kwargs: Any) -> Any:
        codes.append(args[2])
        return evaluate_erasures(*args, **kwargs)

    monkeypatch.setattr("coin_hf.comparison.compare.evaluate_erasures", spied)
    betas = [[0.7, 0.3], [0.2, 0.8]]
    recipe = given(world, start, tmp_path / "out", betas=betas)
    recipe["compare"] = {"coders": ["averaging", "coin"], "seeds": [0]}
    row, other = compare(Recipe.from_dict(recipe))["rows"]
    result = encode(Recipe.from_dict({**recipe, "coder": "averaging"})).result
    coin = encode(Recipe.from_dict({**recipe, "coder": "coin"})).result
    # Both decode with the measured losses as weights, so that their numbers are comparable.
    assert [code.losses for code in codes] == [
        tuple(found.calibration.losses) for found in (result, coin)
    ]
    for mine, others in ((row, result), (other, coin)):
        for one, two in zip(mine["erasures"], others["erasures"], strict=True):
            assert one["scores"][mine["name"]] == two["scores"][mine["coder"]]
    assert [(e["missing"], e["beside"]) for e in row["erasures"]] == [
        ("low", []), ("high", []), ("low", ["high"]), ("high", ["low"]),
    ]  # fmt: skip
    assert row["mean_nda"] == pytest.approx(result["mean_nda"]["averaging"])

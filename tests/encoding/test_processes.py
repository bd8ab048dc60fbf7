"""Several processes: the same coded model and numbers as one, told and written once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from builders import digits, recipe_dict, save_timm, timm_model
from safetensors.torch import load_file

from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes=1", "-m"]


def launch(launcher: list[str], recipe: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `coin-hf encode RECIPE` under a launcher."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, "coin_hf", "encode", str(recipe), *options],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def write(folder: Path, world: Path, **changes: Any) -> Path:
    recipe = {**recipe_dict(world), "lam": "auto", "output": str(folder / "coded"), **changes}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def same(a: Any, b: Any) -> bool:
    """Equal plain data, numbers to a relative 1e-5."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == pytest.approx(b, rel=1e-5) if isinstance(a, float) else a == b


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coded model that this one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = Recipe.from_yaml(write(folder, world, evaluation={"batch_size": 16}))
    encode(recipe).save_pretrained(folder / "coded")
    return folder / "coded"


@pytest.mark.parametrize(
    ("launcher", "processes"), [(TORCHRUN, 2), (ACCELERATE, 1)], ids=["torchrun", "accelerate"]
)
def test_the_same_model_and_numbers_in_any_number_of_processes(
    launcher: list[str], processes: int, world: Path, tmp_path: Path, alone: Path
) -> None:
    done = launch(launcher, write(tmp_path, world, evaluation={"batch_size": 16}), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object and nothing else: one process talked
    assert result["run"]["processes"] == processes
    assert done.stderr.count("saved to") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coded", "recipe.yaml"]

    expected = load_file(alone / "model.safetensors")
    found = load_file(tmp_path / "coded" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    one = json.loads((alone / "result.json").read_text())
    keys = ("betas", "lam", "choice", "samples", "erasures", "mean_nda")
    for key in keys:
        assert same(result[key], one[key]), (key, result[key], one[key])
    assert sum(erasure["points"] for erasure in result["erasures"]) == 100


def test_what_the_launcher_asks_for_and_a_run_does_not_do_is_said(
    world: Path, tmp_path: Path, alone: Path
) -> None:
    asking = [*ACCELERATE[:2], "--num_processes=2", "--mixed_precision=bf16", "-m"]
    recipe = write(tmp_path, world, evaluation={"batch_size": 16})
    done = launch(asking, recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("the launcher asks for mixed precision in bf16, several processes") == 1
    )
    run = json.loads(done.stdout)["run"]
    assert (run["processes"], run["precision"], run["device"]) == (1, "float32", "cpu")
    expected = load_file(alone / "model.safetensors")
    found = load_file(tmp_path / "coded" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_process_leaves_the_group_before_it_ends(world: Path, tmp_path: Path) -> None:
    """Left to the end of the interpreter, the group's threads made it abort now and then."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\n"
        "from coin_hf.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "from accelerate import PartialState\n"
        "assert PartialState._shared_state['num_processes'] == 2\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    recipe = write(tmp_path, world, lam=0.1)
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN[:-1], program, "encode", recipe],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a failed run: what the launcher itself tells of it may stand around."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert "cli.py" not in done.stderr, "a traceback of ours"
    (found,) = re.findall("^error: (.*)", done.stderr, flags=re.MULTILINE)
    return found


def test_a_mistake_ends_all_processes_with_one_sentence(world: Path, tmp_path: Path) -> None:
    # The main process opens experts first: the other one waits for it when it fails.
    save_timm(tmp_path / "odd", timm_model())
    with (tmp_path / "odd" / "model.safetensors").open("r+b") as stream:
        stream.truncate(100_000)
    experts = [{"model": str(tmp_path / "odd"), "dataset": "low"}]
    recipe = write(tmp_path, world, experts=experts + recipe_dict(world)["experts"][1:])
    found = sentence(launch(TORCHRUN, recipe))
    assert "expert 'odd': model.safetensors is damaged or cut short" in found
    assert not (tmp_path / "coded").exists()


def test_a_mistake_that_one_process_meets_is_told_too(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    digits(slice(0, 200)).to_parquet(folder / "train-00000-of-00001.parquet")
    test = digits(slice(200, 300)).cast_column("image", datasets.Image(decode=False))
    rows = test.to_list()
    second = [i for i, row in enumerate(rows) if row["label"] < 5][16]
    rows[second]["image"]["bytes"] = b"no image"  # in the second batch: the second process's
    datasets.Dataset.from_list(rows, features=digits(slice(0, 1)).features).to_parquet(
        folder / "test-00000-of-00001.parquet"
    )
    blocks = {
        key: {"path": str(folder), "labels": labels}
        for key, labels in {"low": [0, 1, 2, 3, 4], "high": [5, 6, 7, 8, 9]}.items()
    }
    recipe = write(tmp_path, world, datasets=blocks, evaluation={"batch_size": 16}, lam=0.1)
    assert f"the image in row {second} of the split 'test' of dataset 'low' is damaged" in sentence(
        launch(TORCHRUN, recipe)
    )
    assert not (tmp_path / "coded").exists()


def test_several_coded_models_in_two_processes(world: Path, tmp_path: Path) -> None:
    changes = {"coded": 2, "lam": 0.1, "evaluation": {"batch_size": 16}}
    done = launch(TORCHRUN, write(tmp_path, world, **changes), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run"]["processes"] == 2
    one = encode(Recipe.from_yaml(tmp_path / "recipe.yaml")).result
    for key in ("betas", "erasures", "patterns", "mean_nda_several", "calibration", "detection"):
        assert same(result[key], one[key]), (key, result[key], one[key])
    assert (tmp_path / "coded" / "coded-1" / "model.safetensors").is_file()


@pytest.mark.parametrize("coder", ["coin", "regmean"])
def test_refined_in_two_processes(coder: str, world: Path, tmp_path: Path) -> None:
    """An odd number of samples to fit to, and batches of which one process has more."""
    changes = {
        "coder": coder,
        "lam": 0.1,
        "samples": {"per_expert": 9, "seed": 0},
        "refine": [{"step": "layerwise", "strength": 0.1}, {"step": "head", "strength": 1.0}],
        "augment": {"copies": 2},
        "evaluation": {"batch_size": 16},
    }
    done = launch(TORCHRUN, write(tmp_path, world, **changes), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run"]["processes"] == 2
    one = encode(Recipe.from_yaml(tmp_path / "recipe.yaml"))
    found = load_file(tmp_path / "coded" / "model.safetensors")
    for name, value in one.coded_models[0].parameters.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    assert result["refinements"][0]["kept"]
    for told, expected in zip(result["refinements"], one.result["refinements"], strict=True):
        assert told["kept"] == expected["kept"]
        assert told["after"] == pytest.approx(expected["after"], rel=1e-3)

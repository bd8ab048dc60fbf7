"""The command line: what goes where; every mistake is one sentence and exit code 2."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from builders import recipe_dict, save_timm, timm_model

from coin_hf.cli import main  # noqa: F401  # imported once, before any test measures it
from coin_hf.pipeline import resolve
from coin_hf.recipe import Recipe
from coin_hf.repository.folder import COIN_FILE

Command = Callable[..., tuple[int, str, str]]
Make = Callable[[Path], dict[str, Any]]


def write(folder: Path, world: Path, **changes: Any) -> Path:
    """A recipe in `folder` on the experts of `world`, its output in `folder`."""
    recipe = {**recipe_dict(world), "output": str(folder / "coded"), **changes}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, hidden ones too, and the empty folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def sentence(err: str) -> str:
    """What follows the one `error: ` on stderr, which ends it."""
    assert "Traceback" not in err
    _, found = re.split("^error: ", err, flags=re.MULTILINE)
    return found.rstrip("\n")


def second_expert(folder: Path, world: Path) -> dict[str, Any]:
    """Recipe keys that replace the second expert by the one in `folder`/odd."""
    return {
        "experts": [
            recipe_dict(world)["experts"][0],
            {"model": str(folder / "odd"), "dataset": "high"},
        ]
    }


def other_architecture(folder: Path) -> None:
    model = timm_model(architecture="test_efficientnet")
    save_timm(folder, model, architecture="test_efficientnet")


def other_classes(folder: Path) -> None:
    save_timm(folder, timm_model(num_classes=7))


def other_normalisation(folder: Path) -> None:
    save_timm(folder, timm_model(), mean=[0.1, 0.2, 0.3])


def truncated(folder: Path) -> None:
    save_timm(folder, timm_model())
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(100_000)


def corrupted(folder: Path) -> None:
    save_timm(folder, timm_model())
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(b"\xff" * 64)


def with_nan(folder: Path) -> None:
    model = timm_model()
    with torch.no_grad():
        model.get_parameter("layer2.0.conv1.weight")[0, 0, 0, 0] = float("nan")
    save_timm(folder, model)


def pickle_only(folder: Path) -> None:
    save_timm(folder, timm_model())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


EXPERTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "other architecture": (
        other_architecture,
        [
            "architecture, architecture: 'low' has test_resnet, 'odd' has test_efficientnet",
            "parameters: only 'low', not 'odd', has 'conv1.0.weight'",
            "parameters: only 'odd', not 'low', has 'conv_stem.weight'",
            "use experts fine-tuned from one foundation",
        ],
    ),
    "other class count": (
        other_classes,
        ["'low' has no class names to match", "give its 10 names as `labels`"],
    ),
    "other normalisation": (
        other_normalisation,
        ["preprocessing, mean: 'low' has [0.5, 0.5, 0.5], 'odd' has [0.1, 0.2, 0.3]"],
    ),
    "truncated weights": (
        truncated,
        ["expert 'odd': model.safetensors is damaged or cut short", "download or save it again"],
    ),
    "corrupted weights": (corrupted, ["expert 'odd': model.safetensors is damaged or cut short"]),
    "NaN": (with_nan, ["expert 'odd'", "not finite in 'layer2.0.conv1.weight'", "checkpoint"]),
    "only a pickle": (pickle_only, ["expert 'odd' holds only pickles (pytorch_model.bin)"]),
    "nothing there": (lambda folder: None, ["there is no folder", "odd", "Hub id"]),
}


@pytest.mark.parametrize("case", EXPERTS)
def test_an_unusable_expert_is_one_sentence(
    case: str, world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    make, parts = EXPERTS[case]
    make(tmp_path / "odd")
    recipe = write(tmp_path, world, **second_expert(tmp_path, world))
    before = files(tmp_path)
    code, out, err = coin_hf("encode", recipe)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in sentence(err)
    assert files(tmp_path) == before


RECIPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt key": ({"beta": [0.5, 0.5]}, ["unknown key 'beta', did you mean 'betas'?"]),
    "misspelt key inside": ({"samples": {"per_exprt": 8}}, ["'samples.per_exprt'", "'per_expert'"]),
    "betas sum": ({"betas": [0.5, 0.6]}, ["betas must sum to 1, but 0.5, 0.6 sum to 1.1"]),
    "betas negative": ({"betas": [1.5, -0.5]}, ["betas must all be positive, got 1.5, -0.5"]),
    "betas number": ({"betas": [0.5, 0.25, 0.25]}, ["betas has 3 values", "for 2 experts"]),
    "lam negative": ({"lam": -1}, ["'lam'", "at least 0 or 'auto', got -1"]),
    "too many samples": (
        {"samples": {"per_expert": 1000}},
        ["dataset 'low' has only ", "[0, 1, 2, 3, 4]", "1000 were asked for", "ask for fewer"],
    ),
    "no such split": ({"evaluation": {"split": "validation"}}, ["dataset 'low'", "'validation'"]),
    "nowhere to write": ({"output": None}, ["has no output", "-o output=FOLDER"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_an_unusable_recipe_is_one_sentence(
    case: str, world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    changes, parts = RECIPES[case]
    recipe = write(tmp_path, world, **changes)
    before = files(tmp_path)
    code, out, err = coin_hf("encode", recipe)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in sentence(err)
    assert "\n" not in sentence(err)
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", [("encode",), ("encode", "--dry-run")])
def test_a_repository_that_cannot_be_had_without_network(
    command: tuple[str, ...], world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    experts = [{"model": "nobody/nothing", "revision": "v2", "dataset": "low"}]
    experts += recipe_dict(world)["experts"][1:]
    code, out, err = coin_hf(*command, write(tmp_path, world, experts=experts))
    assert (code, out) == (2, "")
    assert sentence(err) == (
        "the model 'nobody/nothing' at revision 'v2' is not in the local cache and HF_HUB_OFFLINE "
        "is set: download it once with a network, or give a folder"
    )


def test_a_folder_that_is_not_the_revision_asked_for(
    world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    experts = recipe_dict(world)["experts"]
    experts[1]["revision"] = "sha256:" + 64 * "0"
    code, out, err = coin_hf("encode", write(tmp_path, world, experts=experts))
    assert (code, out) == (2, "")
    assert "high has changed: expected revision sha256:000" in sentence(err)


def test_a_dataset_without_image_column(world: Path, tmp_path: Path, coin_hf: Command) -> None:
    (tmp_path / "texts").mkdir()
    texts = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    for split in ("train", "test"):
        texts.to_parquet(tmp_path / "texts" / f"{split}-00000-of-00001.parquet")
    blocks = {key: {"path": str(tmp_path / "texts")} for key in ("low", "high")}
    recipe = write(tmp_path, world, datasets=blocks)
    code, out, err = coin_hf("encode", recipe)
    assert (code, out) == (2, "")
    assert sentence(err) == (
        "dataset 'low' has no image column, only text (string), label (int64): "
        "give a dataset with a column of type Image"
    )
    assert not (tmp_path / "coded").exists()


def test_unreadable_recipes(tmp_path: Path, coin_hf: Command) -> None:
    code, out, err = coin_hf("encode", tmp_path / "nothing.yaml")
    assert (code, out) == (2, "")
    assert "there is no recipe" in sentence(err)
    assert "give the path of a recipe, a YAML file" in sentence(err)
    (tmp_path / "odd.yaml").write_text("experts: [")
    code, out, err = coin_hf("encode", tmp_path / "odd.yaml")
    assert (code, out) == (2, "")
    assert "odd.yaml is not YAML" in sentence(err)


def test_pushing_needs_a_repository(world: Path, tmp_path: Path, coin_hf: Command) -> None:
    code, out, err = coin_hf("encode", "--push", write(tmp_path, world))
    assert (code, out) == (2, "")
    assert "does not say where to push: add `hub: {repo: name/model}`" in sentence(err)


def test_an_output_in_use_is_refused_before_anything_is_computed(
    world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    (tmp_path / "coded").mkdir()
    (tmp_path / "coded" / "thesis.tex").write_text("mine")
    # An expert that is not there would be the complaint of anything later.
    recipe = write(tmp_path, world, **second_expert(tmp_path, world))
    before = files(tmp_path)
    code, out, err = coin_hf("encode", recipe)
    assert (code, out) == (2, "")
    assert "coded is not empty: choose another `output`, or pass --overwrite" in sentence(err)
    code, out, err = coin_hf("encode", "--overwrite", recipe)
    assert (code, out) == (2, "")
    assert "something other than a coded model (it has no coin.json)" in sentence(err)
    assert files(tmp_path) == before


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_computed(
    world: Path, tmp_path: Path, coin_hf: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path, world, **second_expert(tmp_path, world))
    code, _, err = coin_hf("encode", recipe, "-o", f"output={recipe}")
    assert code == 2
    assert sentence(err) == f"the output {recipe} is a file: choose a folder"
    code, _, err = coin_hf("encode", recipe, "-o", f"output={recipe}/below/it")
    assert code == 2
    assert f"cannot be created, as {recipe} is a file: choose another" in sentence(err)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, _, err = coin_hf("encode", recipe, "-o", "output=~/full")
    assert code == 2
    assert "full is not empty" in sentence(err)


def test_dry_run_prints_the_pinned_recipe_and_writes_nothing(
    world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    recipe = write(tmp_path, world, lam="auto")
    before = files(tmp_path)
    code, out, _ = coin_hf("encode", "--dry-run", recipe, "-o", "samples.per_expert=5")
    assert code == 0
    printed = Recipe.from_dict(yaml.safe_load(out))
    assert printed == resolve(Recipe.from_yaml(recipe, ["samples.per_expert=5"]))
    assert printed.samples.per_expert == 5
    assert printed.betas == (0.5, 0.5)
    revisions = [block.revision for block in (*printed.experts, *printed.datasets.values())]
    assert all(revision.startswith("sha256:") for revision in revisions)
    assert files(tmp_path) == before
    # What was printed is itself a recipe that pins the same revisions.
    (tmp_path / "pinned.yaml").write_text(out)
    assert coin_hf("encode", "--dry-run", tmp_path / "pinned.yaml")[:2] == (0, out)


@pytest.mark.slow
def test_encode_overwrite_and_evaluate(world: Path, tmp_path: Path, coin_hf: Command) -> None:
    recipe = write(tmp_path, world)
    code, out, err = coin_hf("encode", recipe)
    assert code == 0
    assert "COIN" in out
    assert "no coded model (control)" in out
    assert f"saved to {tmp_path / 'coded'}" in err
    first = files(tmp_path / "coded")
    assert first.keys() == {
        "README.md", "coin.json", "config.json", "erasure.svg", "model.safetensors", "nda.png",
        "result.json",
    }  # fmt: skip
    assert coin_hf("encode", recipe)[0] == 2
    assert files(tmp_path / "coded") == first
    code, out, _ = coin_hf("encode", recipe, "--overwrite", "--json", "-o", "lam=1")
    assert code == 0
    assert json.loads(out)["lam"] == 1
    assert json.loads((tmp_path / "coded" / "coin.json").read_text())["lam"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coded", "recipe.yaml"]

    measured = json.loads(out)
    code, out, _ = coin_hf("evaluate", tmp_path / "coded", "--json")
    assert code == 0
    assert json.loads(out)["erasures"] == measured["erasures"]
    code, out, _ = coin_hf("evaluate", tmp_path / "coded", "-o", "evaluation.limit=10", "--json")
    assert code == 0
    assert [erasure["points"] for erasure in json.loads(out)["erasures"]] == [10, 10]
    code, out, err = coin_hf("evaluate", tmp_path / "coded", "-o", "lam=0.1")
    assert (code, out) == (2, "")
    assert "'lam=0.1'" in sentence(err)
    assert "encode" in sentence(err)


@pytest.mark.slow
def test_warnings_are_one_line_each_on_stderr(
    world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    odd = timm_model(1)
    odd.get_buffer("conv1.1.running_mean").add_(0.5)
    save_timm(tmp_path / "odd", odd)
    recipe = write(tmp_path, world, **second_expert(tmp_path, world))
    code, out, err = coin_hf("encode", recipe, "--json")
    assert code == 0
    assert json.loads(out)["experts"][1]["name"] == "odd"
    (line,) = re.findall("^warning: (.*statistics.*)", err, flags=re.MULTILINE)
    assert line.endswith("freeze BatchNorm when fine-tuning, as arXiv:2409.01420 does")
    assert "pipeline.py" not in err


def test_evaluate_and_push_refuse_what_is_no_coded_model(
    world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    code, out, err = coin_hf("evaluate", world / "low")
    assert (code, out) == (2, "")
    assert "is not a coded model (it has no coin.json)" in sentence(err)
    code, out, err = coin_hf("push", world / "low", "me/coded")
    assert (code, out) == (2, "")
    assert "is not a coded model (it has no coin.json)" in sentence(err)
    code, out, err = coin_hf("push", tmp_path / "nothing", "me/coded")
    assert (code, out) == (2, "")
    assert "nothing" in sentence(err)


@pytest.mark.parametrize(
    "arguments", [["bake"], ["encode"], ["encode", "r.yaml", "--fast"], ["evaluate", "a", "b"]]
)
def test_wrong_usage_is_told_on_stderr(arguments: list[str], coin_hf: Command) -> None:
    code, out, err = coin_hf(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: coin-hf" in err
    assert "Error" in err


def test_schema_is_a_json_schema_of_recipes(coin_hf: Command) -> None:
    code, out, _ = coin_hf("schema")
    schema = json.loads(out)
    assert code == 0
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert set(schema["required"]) == {"experts", "datasets"}
    assert schema["additionalProperties"] is False
    assert "Penalty lambda" in schema["properties"]["lam"]["description"]


HELP = """
import sys
from coin_hf.cli import main
sys.argv[0] = "coin-hf"
try:
    main()
finally:
    heavy = {"torch", "transformers", "datasets", "timm", "accelerate", "matplotlib", "numpy"}
    print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_help_and_a_misspelt_key_import_nothing_heavy(world: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", HELP, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    helped = run("--help")
    assert helped.returncode == 0
    assert all(name in helped.stdout for name in ("encode", "evaluate", "push", "demo", "schema"))
    assert helped.stderr == "imported: []\n"
    refused = run("encode", str(write(tmp_path, world, beta=[0.5, 0.5])))
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == (
        f"error: {tmp_path / 'recipe.yaml'}: unknown key 'beta', did you mean 'betas'?\n"
        "imported: []\n"
    )


def test_a_full_disk_leaves_nothing_half_written(
    world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    recipe = write(tmp_path, world)
    before, limits = files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may hold a megabyte, which is less than the weights: what a full disk answers.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        code, out, err = coin_hf("encode", recipe, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, "")
    assert f"cannot write the output folder {tmp_path / 'coded'}: " in sentence(err)
    assert "free some space or choose another `output`" in sentence(err)
    assert files(tmp_path) == before


def test_a_full_disk_leaves_no_fisher(world: Path, tmp_path: Path, coin_hf: Command) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = ("--dataset", world / "digits", "--per-expert", 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        code, _, err = coin_hf("fisher", world / "low", *data, "--output", tmp_path / "fishers")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "low.safetensors: " in sentence(err)
    assert "free some space or choose another output" in sentence(err)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["writing", "computing"])
def test_a_kill_leaves_the_output_whole_or_absent(
    moment: str, world: Path, tmp_path: Path, coin_hf: Command
) -> None:
    recipe = write(tmp_path, world)
    process = subprocess.Popen(
        [sys.executable, "-m", "coin_hf", "encode", str(recipe)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 100

    def drafts() -> list[Path]:
        return [path for path in tmp_path.glob(".coded.*") if path.suffix != ".lock"]

    while moment == "writing" and not drafts() and time.monotonic() < deadline:
        time.sleep(0.005)
    while moment == "computing" and b"decode" not in os.read(process.stderr.fileno(), 1000):
        pass  # the bar of the first erasure
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "coded").exists()
    assert bool(drafts()) == (moment == "writing")
    code, _, _ = coin_hf("encode", recipe)
    assert code == 0
    assert (tmp_path / "coded" / COIN_FILE).is_file()
    assert list(tmp_path.glob(".coded.*")) == []  # what the killed run left is removed

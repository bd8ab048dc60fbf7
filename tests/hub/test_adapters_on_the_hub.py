"""Adapters over a Hub: their base is found there, pinned by commit, and loaded again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from builders import save_adapter, save_digits, save_transformers
from hub_clients import DATA, PUBLISH, SHA, coin_hf, environment, python
from hub_server import Hub, User, serve

pytestmark = [pytest.mark.slow, pytest.mark.hub]

WRITER = "hf_writer"

LOAD = """
from coin_hf import CodedEnsemble
import torch
ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
report["bases"] = [[expert.base.model, expert.base.revision] for expert in ensemble.experts]
report["shapes"] = [list(f.shape) for f in ensemble(torch.randn(2, 3, 32, 32), missing=["low"])]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub"), {WRITER: User("me", write=True)}) as running:
        yield running
    assert running.unknown == [], "a client asked for what the server does not speak"


@pytest.fixture(scope="module")
def env(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A writer's environment, once a base, two of its adapters and digits are on the Hub."""
    folder = tmp_path_factory.mktemp("makers")
    save_digits(folder / "digits")
    base = save_transformers(folder / "base")
    for seed, name in enumerate(("low", "high", "astray")):
        save_adapter(base, folder / name, seed)
        file = folder / name / "adapter_config.json"
        said = {**json.loads(file.read_text()), "base_model_name_or_path": "me/base"}
        if name == "astray":
            said["base_model_name_or_path"] = str(base)
        file.write_text(json.dumps(said))
        (folder / name / "README.md").unlink(missing_ok=True)
    made = environment(hub.endpoint, tmp_path_factory.mktemp("home"), WRITER)
    models = {f"me/{name}": False for name in ("base", "low", "high", "astray")}
    python(PUBLISH, {"folder": str(folder), "models": models}, made)
    shutil.rmtree(folder / "high")
    return made


def write(folder: Path, second: str) -> None:
    recipe = {
        "experts": [
            {"model": "me/low", "dataset": "low"},
            {"model": second, "dataset": "high"},
        ],
        "datasets": DATA,
        "samples": {"per_expert": 8},
        "lam": 0.01,
        "fisher": {"estimator": "exact"},
        "output": "coded",
        "hub": {"repo": "me/coded"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_both_are_pinned_and_named(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "me/high")
    done = coin_hf("encode", "recipe.yaml", "--push", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    experts = json.loads(hub.read("me/coded", "coin.json"))["experts"]
    assert [expert["base"] for expert in experts] == ["me/base", "me/base"]
    assert all(SHA.fullmatch(expert["base_revision"]) for expert in experts)
    card = hub.read("me/coded", "README.md").decode()
    assert "base_model:\n- me/low\n- me/base\n- me/high\n" in card
    found = python(LOAD, {}, environment(env["HF_ENDPOINT"], tmp_path / "home"))
    revision = experts[0]["base_revision"]
    assert found["bases"] == [["me/base", revision]] * 2
    assert found["shapes"] == [[2, 10]] * 2


def test_an_adapter_from_the_hub_names_no_folder(env: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "me/astray")
    done = coin_hf("encode", "recipe.yaml", env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert "expert 'astray' is an adapter from the Hub whose base is the folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "coded").exists()

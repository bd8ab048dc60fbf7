"""Several coded models and Fishers over a Hub: pushed, loaded by plain libraries, re-coded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import make_world
from hub_clients import DATA, PUBLISH, coin_hf, environment, python
from hub_server import Hub, User, serve

pytestmark = [pytest.mark.slow, pytest.mark.hub]

WRITER = "hf_writer"

LOAD = """
import timm, torch
from huggingface_hub import snapshot_download
from coin_hf import CodedEnsemble

x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ensemble = CodedEnsemble.from_pretrained("me/two", experts=True)
folder = snapshot_download("me/two")
plain = [timm.create_model("hf-hub:me/two", pretrained=True).eval(),
         timm.create_model(f"local-dir:{folder}/coded-1", pretrained=True).eval()]
with torch.no_grad():
    pairs = zip(plain, ensemble.coded_models, strict=True)
    report["equal"] = [torch.equal(one(x), other.model(x)) for one, other in pairs]
    report["differ"] = not torch.equal(plain[0](x), plain[1](x))
report["both decoded"] = [list(f.shape) for f in ensemble(x, missing=[0, 1])]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub"), {WRITER: User("me", write=True)}) as running:
        yield running
    assert running.unknown == [], "a client asked for what the server does not speak"


@pytest.fixture(scope="module")
def env(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A writer's environment, once two experts and their digits are on the Hub."""
    folder = tmp_path_factory.mktemp("makers")
    make_world(folder)
    made = environment(hub.endpoint, tmp_path_factory.mktemp("home"), WRITER)
    said = {"folder": str(folder), "models": {"me/low": False, "me/high": False}}
    python(PUBLISH, said, made)
    return made


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Path:
    """A folder in which two coded models were encoded and pushed to me/two."""
    folder = tmp_path_factory.mktemp("user")
    recipe = {
        "experts": [{"model": f"me/{name}", "dataset": name} for name in ("low", "high")],
        "datasets": DATA,
        "samples": {"per_expert": 8},
        "coded": 2,
        "lam": 0.01,
        "fisher": {"estimator": "exact", "save": True},
        "output": "coded",
        "hub": {"repo": "me/two"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = coin_hf("encode", "recipe.yaml", "--push", env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_plain_libraries_load_every_coded_model(
    user: Path, hub: Hub, tmp_path: Path, env: dict[str, str]
) -> None:
    empty = environment(hub.endpoint, tmp_path / "home")
    found: dict[str, Any] = python(LOAD, {}, empty)
    assert found == {"equal": [True, True], "differ": True, "both decoded": [[2, 10], [2, 10]]}


def test_recode_from_the_hub(user: Path, env: dict[str, str], hub: Hub) -> None:
    done = coin_hf("recode", "me/two", "--output", "again", env=env, cwd=user)
    assert done.returncode == 0, done.stderr
    for path in ("model.safetensors", "coded-1/model.safetensors", "fisher/low.safetensors"):
        assert (user / "again" / path).read_bytes() == hub.read("me/two", path)
    done = coin_hf("push", "again", "me/again", env=env, cwd=user)
    assert done.returncode == 0, done.stderr
    assert b"**Not measured.**" in hub.read("me/again", "README.md")
    assert json.loads(hub.read("me/again", "result.json"))["erasures"] == []


def test_a_fisher_is_published_alone(user: Path, env: dict[str, str], hub: Hub) -> None:
    done = coin_hf("fisher", "me/low", "--like", "me/two", "--push-to", "me/low", env=env, cwd=user)
    assert done.returncode == 0, done.stderr
    pushed = hub.read("me/low", "fisher/low.safetensors")
    size = int.from_bytes(pushed[:8], "little")
    one = json.loads(pushed[8 : 8 + size])["__metadata__"]
    saved = hub.read("me/two", "fisher/low.safetensors")
    other = json.loads(saved[8 : 8 + size])["__metadata__"]
    assert {**one, "versions": ""} == {**other, "versions": ""}
    assert one["model"] == "me/low"
    assert pushed[8 + size :] == saved[8 + size :]
    # What is in the expert's repository beside it is as it was.
    assert json.loads(hub.read("me/low", "config.json"))["architecture"] == "test_resnet"

"""The coded repository: its files, its relative paths, and that it is whole or not there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import save_timm, timm_model
from PIL.Image import open as open_image
from safetensors import safe_open
from transformers import AutoModelForImageClassification

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.hub.client import pin
from coin_hf.reports.card import model_card
from coin_hf.repository.folder import check_output, read_repository, write_repository
from coin_hf.repository.paths import local_experts

FILES = {
    "README.md", "coin.json", "config.json", "erasure.svg", "model.safetensors", "nda.png",
    "result.json",
}  # fmt: skip

COIN = """{
  "format": 1,
  "library": "timm",
  "coder": "coin",
  "betas": [0.25, 0.75],
  "lam": 0.001,
  "experts": [
    {"model": "./experts/cats", "dataset": "pets", "revision": "sha256:REVISION-0", "name": "cats", "library": "timm"},
    {"model": "../dogs", "dataset": "pets", "revision": "sha256:REVISION-1", "name": "dogs", "library": "timm"}
  ],
  "datasets": {
    "pets": {"path": "someone/pets", "revision": "0123456789abcdef0123456789abcdef01234567", "split": "train", "streaming": false}
  },
  "samples": {"per_expert": 2, "seed": 0, "held_out": 0.0, "rows": {"cats": [3, 1], "dogs": [0, 7]}},
  "fisher": {"estimator": "exact"},
  "evaluation": {"split": "test", "batch_size": 64},
  "versions": {"python": "3.12.0", "coin-hf": "0.1.0"}
}
"""  # noqa: E501
"""What version 1 of the format looks like: files that were written stay readable."""

RESULT = """{
  "format": 1,
  "library": "timm",
  "coder": "coin",
  "betas": [0.25, 0.75],
  "lam": 0.001,
  "architecture": "test_resnet",
  "num_classes": 10,
  "choice": {"key": "lam", "by": "nda", "samples": 4, "scores": [
    {"value": 0.001, "nda": 87.5, "agreement": 0.75, "coding_loss": 0.25}
  ]},
  "experts": [
    {"model": "./experts/cats", "dataset": "pets", "revision": "sha256:REVISION-0", "name": "cats", "library": "timm", "license": "mit"},
    {"model": "../dogs", "dataset": "pets", "revision": "sha256:REVISION-1", "name": "dogs", "library": "timm", "license": null}
  ],
  "datasets": {
    "pets": {"path": "someone/pets", "revision": "0123456789abcdef0123456789abcdef01234567", "split": "train", "streaming": false}
  },
  "samples": {"per_expert": 2, "seed": 0, "held_out": 0.0, "count": 4},
  "fisher": {"estimator": "exact", "probes": 4, "save": false},
  "evaluation": {"split": "test", "batch_size": 64},
  "erasures": [
    {"missing": "cats", "beside": [], "points": 8, "expert_accuracy": 0.875, "scores": {
      "coin": {"nda": 100.0, "decoded_accuracy": 0.875, "agreement": 0.75, "coding_loss": 0.5},
      "averaging": {"nda": 57.1, "decoded_accuracy": 0.5, "agreement": 0.5, "coding_loss": 1.5},
      "output average": {"nda": 100.0, "decoded_accuracy": 0.875, "agreement": 1.0, "coding_loss": 0.0},
      "no coded model": {"nda": 0.0, "decoded_accuracy": 0.0, "agreement": 0.0, "coding_loss": null}
    }}
  ],
  "mean_nda": {"coin": 100.0, "averaging": 57.1, "output average": 100.0, "no coded model": 0.0},
  "run": {"device": "cpu", "processes": 1, "seconds": {"load": 0.5}, "versions": {"python": "3.12.0", "coin-hf": "0.1.0"}}
}
"""  # noqa: E501
"""The result beside it, without what later versions of coin-hf 0.1 added to the format."""


def read(coded: Path) -> tuple[CodedEnsemble, dict[str, Any], dict[str, Any]]:
    return CodedEnsemble.from_pretrained(coded), *read_repository(coded, str(coded))


def test_the_files_of_a_coded_repository(coded: Path) -> None:
    assert {path.name for path in coded.iterdir()} == FILES
    with safe_open(coded / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    config = json.loads((coded / "config.json").read_text())
    assert config["architecture"] == "test_resnet"
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 10
    assert "num_classes" not in config.get("model_args", {})
    with open_image(coded / "nda.png") as image:
        assert image.format == "PNG"
    # What lies beside it is recorded relative to it.
    coin = json.loads((coded / "coin.json").read_text())
    assert [expert["model"] for expert in coin["experts"]] == ["../low", "../high"]
    assert {block["path"] for block in coin["datasets"].values()} == {"../digits"}
    result = json.loads((coded / "result.json").read_text())
    assert [expert["model"] for expert in result["experts"]] == ["../low", "../high"]
    for name in FILES - {"model.safetensors", "nda.png"}:
        assert str(coded.parent) not in (coded / name).read_text()


def test_a_literal_coin_json_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "coded"
    save_timm(folder, timm_model(9))
    places = [folder / "experts" / "cats", tmp_path / "tree" / "dogs"]
    revisions = []
    for seed, place in enumerate(places):
        save_timm(place, timm_model(seed))
        revisions.append(pin(str(place), None))
    text = COIN
    for i, revision in enumerate(revisions):
        text = text.replace(f"sha256:REVISION-{i}", revision)
    (folder / "coin.json").write_text(text)
    (folder / "result.json").write_text(RESULT)
    ensemble = CodedEnsemble.from_pretrained(folder, experts=True)
    assert ensemble.code.betas == (0.25, 0.75)
    assert [expert.name for expert in ensemble.experts] == ["cats", "dogs"]
    assert [Path(expert.repo) for expert in ensemble.experts] == places
    assert ensemble.coin["datasets"]["pets"]["path"] == "someone/pets"
    assert ensemble.result["mean_nda"]["coin"] == ensemble.result.mean_nda["coin"] == 100.0
    assert "COIN                        57.1" not in ensemble.result.table()
    assert model_card(ensemble.result, "me/pets").data.license is None
    assert local_experts(ensemble.coin) == ["cats", "dogs"]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = [timm_model(0)(x), timm_model(1)(x), timm_model(9)(x)]
        decoded = ensemble(x, missing=[0])
    assert torch.equal(decoded[1], expected[1])
    assert torch.equal(decoded[0], (expected[2] - 0.75 * expected[1]) / 0.25)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("coin.json", lambda data: {**data, "format": 2}, "has format 2, this coin-hf reads 1"),
        ("coin.json", lambda data: [data], "has format None, this coin-hf reads 1"),
        ("coin.json", lambda data: {**data, "betas": [0.5, 0.6]}, "coin.json: betas must sum to 1"),
        ("coin.json", lambda data: _without(data, "experts"), "coin.json lacks experts: download"),
        ("result.json", lambda data: _without(data, "erasures"), "result.json lacks erasures"),
        ("result.json", lambda data: None, "not a coded model .it has no result.json"),
    ],
)
def test_unreadable_repositories_say_why(
    file: str, change: Any, message: str, coded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(coded, folder)
    changed = change(json.loads((folder / file).read_text()))
    (folder / file).unlink()
    if changed is not None:
        (folder / file).write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
        CodedEnsemble.from_pretrained(folder)


def test_json_that_is_cut_short_says_so(coded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(coded, folder)
    text = (folder / "coin.json").read_text()
    (folder / "coin.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"coin.json is not JSON .*download or make it again"):
        CodedEnsemble.from_pretrained(folder)


def _without(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != key}


def test_the_whole_tree_can_be_moved(coded: Path, tmp_path: Path) -> None:
    tree = tmp_path / "elsewhere"
    shutil.copytree(coded.parent, tree)
    ensemble = CodedEnsemble.from_pretrained(tree / "coded", experts=True)
    assert [expert.repo for expert in ensemble.experts] == [str(tree / "low"), str(tree / "high")]
    ensemble.save_pretrained(tmp_path / "other" / "deep" / "coded")
    coin = json.loads((tmp_path / "other" / "deep" / "coded" / "coin.json").read_text())
    assert coin["experts"][0]["model"] == "../../../elsewhere/low"
    again = CodedEnsemble.from_pretrained(tmp_path / "other" / "deep" / "coded", experts=True)
    assert again.experts[1].repo == str(tree / "high")


def test_relative_paths_work_from_another_working_directory(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(coded.parent, tree)
    monkeypatch.chdir(tree / "coded")
    assert CodedEnsemble.from_pretrained(".", experts=True).experts[0].repo == str(tree / "low")
    monkeypatch.chdir(tree)
    CodedEnsemble.from_pretrained("coded").save_pretrained("again")
    assert json.loads(Path("again/coin.json").read_text())["experts"][0]["model"] == "../low"


def test_links_to_the_output_and_to_experts(coded: Path, tmp_path: Path) -> None:
    disk, home = tmp_path / "disk", tmp_path / "home" / "me"
    (disk / "a" / "coded").mkdir(parents=True)
    home.mkdir(parents=True)
    shutil.copytree(coded.parent / "low", home / "low")
    shutil.copytree(coded.parent / "high", home / "high")
    (home / "coded").symlink_to(disk / "a" / "coded")
    ensemble = CodedEnsemble.from_pretrained(coded)
    ensemble.coin = ensemble.coin.moved(lambda path: str(home / Path(path).name))
    ensemble.save_pretrained(home / "coded")
    ensemble.save_pretrained(home / "coded", overwrite=True)
    assert (home / "coded").is_symlink()
    assert {path.name for path in (disk / "a" / "coded").iterdir()} == FILES
    assert [path.name for path in (disk / "a").iterdir()] == ["coded"]
    for name in (home / "coded", disk / "a" / "coded"):
        loaded = CodedEnsemble.from_pretrained(name, experts=True)
        assert [Path(expert.repo) for expert in loaded.experts] == [home / "low", home / "high"]


def test_a_tree_behind_a_link_stays_movable(coded: Path, tmp_path: Path) -> None:
    shutil.copytree(coded.parent, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    ensemble = CodedEnsemble.from_pretrained(tmp_path / "real" / "coded")
    ensemble.coin = ensemble.coin.moved(lambda path: str(tmp_path / "link" / Path(path).name))
    ensemble.save_pretrained(tmp_path / "link" / "again")
    coin = json.loads((tmp_path / "real" / "again" / "coin.json").read_text())
    assert [expert["model"] for expert in coin["experts"]] == ["../low", "../high"]


def test_overwriting_keeps_the_old_one_until_the_new_one_is_whole(
    coded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "coded"
    ensemble, _, _ = read(coded)
    ensemble.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # A result that JSON cannot say is found out in the middle of writing.
    broken = ensemble.result.model_copy(update={"lam": float("nan")})
    with pytest.raises(ValueError, match="Out of range float"):
        write_repository(folder, ensemble._write, ensemble.coin, broken, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["coded"]
    ensemble.coin = ensemble.coin.model_copy(update={"lam": 0.5})
    ensemble.save_pretrained(folder, overwrite=True)
    assert json.loads((folder / "coin.json").read_text())["lam"] == 0.5
    assert os.listdir(tmp_path) == ["coded"]


def test_what_check_output_lets_pass(tmp_path: Path, coded: Path) -> None:
    check_output(tmp_path / "not" / "yet" / "there", overwrite=False)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=False)
    check_output(coded, overwrite=True)
    with pytest.raises(InputError, match="is not empty"):
        check_output(coded, overwrite=False)


def test_timm_and_transformers_load_the_very_same_network(coded: Path) -> None:
    x = torch.randn(3, 3, 32, 32)
    ensemble = CodedEnsemble.from_pretrained(coded)
    by_timm = timm.create_model(f"local-dir:{coded}", pretrained=True).eval()
    by_transformers = AutoModelForImageClassification.from_pretrained(coded).eval()
    with torch.no_grad():
        expected = ensemble.model(x)
        assert torch.equal(by_timm(x), expected)
        assert torch.equal(by_transformers(x).logits, expected)

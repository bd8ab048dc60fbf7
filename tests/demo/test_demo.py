"""The demo's own part: data, experts and refusals; the whole of it takes minutes."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn

from coin_hf.demo import run as demo
from coin_hf.errors import InputError
from coin_hf.experts.expert import load_expert
from coin_hf.recipe import Recipe

ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "digits"
    demo.make_digits(folder)
    return folder


def test_the_recipe_is_the_packaged_one_and_names_what_the_demo_makes() -> None:
    assert (ROOT / "recipes" / "demo.yaml").read_bytes() == demo.RECIPE.read_bytes()
    recipe = Recipe.from_yaml(demo.RECIPE)
    default = Path("coin-hf-demo")
    assert [expert.model for expert in recipe.experts] == [
        str(default / "experts" / name) for name in demo.LABELS
    ]
    assert {name: block.labels for name, block in recipe.datasets.items()} == {
        name: tuple(labels) for name, labels in demo.LABELS.items()
    }
    assert recipe.foundation.foundation == str(default / "experts" / "start")
    assert recipe.lam == "auto"
    assert recipe.output == str(default / "coded")


def test_the_digits_are_scikit_learns_as_a_parquet_dataset(data: Path) -> None:
    assert sorted(path.name for path in data.iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]
    splits = datasets.load_dataset("parquet", data_dir=str(data))
    assert {name: len(split) for name, split in splits.items()} == {"train": 1347, "test": 450}
    features = splits["train"].features
    assert isinstance(features["image"], datasets.Image)
    assert features["label"].names == [str(i) for i in range(10)]
    image = splits["test"][0]["image"]
    assert (image.size, image.mode) == ((32, 32), "L")
    # Every digit is in one split, once.
    labels = splits["train"]["label"][:] + splits["test"]["label"][:]
    assert np.bincount(labels).tolist() == np.bincount(load_digits().target).tolist()
    pixels = {np.asarray(row["image"]).tobytes() for split in splits.values() for row in split}
    assert len(pixels) == len(load_digits().images)


@pytest.mark.slow
def test_two_experts_of_one_start_with_batch_norm_frozen(data: Path, tmp_path: Path) -> None:
    """The same training on a small network and a few digits."""
    few = tmp_path / "digits"
    few.mkdir()
    train = datasets.load_dataset("parquet", data_dir=str(data), split="train")
    train.select(range(192)).to_parquet(few / "train-00000-of-00001.parquet")
    before = torch.get_rng_state()
    demo.make_experts(few, tmp_path / "experts", "test_resnet")
    assert torch.equal(torch.get_rng_state(), before)
    low, high = (load_expert(str(tmp_path / "experts" / name)) for name in demo.LABELS)
    assert low.label_names == tuple("0123456789")
    norms = {
        f"{prefix}.{name}"
        for prefix, module in low.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in module.state_dict()
    }
    fresh = timm.create_model("test_resnet", num_classes=10).state_dict()
    other = high.model.state_dict()
    for name, value in low.model.state_dict().items():
        assert torch.equal(value, other[name]) == (name in norms), name
    statistics = "conv1.1.running_mean"  # of the shared start, which was trained
    assert not torch.equal(low.buffers[statistics], fresh[statistics])
    config = json.loads((tmp_path / "experts" / "low" / "config.json").read_text())
    assert config["architecture"] == "test_resnet"
    # The start differs from both in all but BatchNorm.
    start = load_expert(str(tmp_path / "experts" / "start")).model.state_dict()
    for name, value in low.model.state_dict().items():
        assert torch.equal(value, start[name]) == (name in norms), name
    # Made again, they are the same.
    demo.make_experts(few, tmp_path / "again", "test_resnet")
    again = load_expert(str(tmp_path / "again" / "low"))
    assert again.revision == low.revision


def test_a_folder_in_use_is_refused(tmp_path: Path, coin_hf: Command) -> None:
    mine = tmp_path / "mine"
    (mine / "experts").mkdir(parents=True)
    (mine / "experts" / "weights").write_text("years of work")
    (mine / "notes.txt").write_text("mine")
    code, out, err = coin_hf("demo", mine)
    assert (code, out) == (2, "")
    assert err == (
        f"error: the folder {mine} is not empty: pass --overwrite to replace an earlier demo, or "
        "choose another folder\n"
    )
    code, out, err = coin_hf("demo", mine, "--overwrite")
    assert (code, out) == (2, "")
    assert "holds something other than a demo (notes.txt), so --overwrite leaves it alone" in err
    assert (mine / "experts" / "weights").read_text() == "years of work"
    code, out, err = coin_hf("demo", mine / "notes.txt")
    assert (code, out) == (2, "")
    assert "notes.txt is a file: choose a folder" in err


def test_an_earlier_demo_is_replaced_also_one_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for name in ("digits", "experts/low", ".coded.0123abcd"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").touch()
    demo.clear(folder, overwrite=True)
    assert list(folder.iterdir()) == []
    demo.clear(folder, overwrite=False)  # empty, or not there
    demo.clear(tmp_path / "other", overwrite=False)
    (folder / "digits").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"something other than a demo \(digits\)"):
        demo.clear(folder, overwrite=True)


def test_a_full_disk_is_one_sentence(tmp_path: Path, coin_hf: Command) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        code, out, err = coin_hf("demo", tmp_path / "demo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: [Errno 27] ")
    assert last.endswith("free some space, or choose a place where you may write")


@pytest.mark.parametrize("name", ["2024", "a: b", "null", "with space"])
def test_any_folder_name_will_do(name: str, tmp_path: Path) -> None:
    recipe = demo.recipe_in(tmp_path / name)
    assert recipe.output == str(tmp_path / name / "coded")
    relative = demo.recipe_in(Path(name))
    assert relative.experts[1].model == str(Path(name) / "experts" / "high")
    assert relative.datasets["low"].path == str(Path(name) / "digits")


def test_what_is_missing_is_told_before_anything_is_written_or_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    (tmp_path / "demo" / "digits").mkdir(parents=True)
    with pytest.raises(InputError, match=r'scikit-learn: pip install "coin-hf\[demo\]"'):
        demo.run(tmp_path / "demo", overwrite=True)
    assert (tmp_path / "demo" / "digits").is_dir()
    with pytest.raises(InputError, match="scikit-learn"):
        demo.run(tmp_path / "other")
    assert not (tmp_path / "other").exists()

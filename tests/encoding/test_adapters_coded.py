"""The whole line with adapters, makers of two libraries, and dtypes: encode, load, recode, card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    digits,
    fit_classifier,
    recipe_dict,
    save_adapter,
    save_timm,
    save_transformers,
    timm_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageClassification

from coin_hf import CodedEnsemble, InputError, Recipe, encode
from coin_hf.experts.expert import load_expert
from coin_hf.hub.hashes import folder_revision
from coin_hf.pipeline import evaluate
from coin_hf.recoding.recode import Newcomer, recode
from coin_hf.records.coin import CoinRecord
from coin_hf.reports.card import model_card
from coin_hf.repository.paths import inside

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*without names for its"),
]


@pytest.fixture
def adapters(world: Path, tmp_path: Path) -> Path:
    save_transformers(tmp_path / "base")
    shutil.copytree(world / "digits", tmp_path / "digits")
    for seed, name in enumerate(("low", "high", "third")):
        save_adapter(tmp_path / "base", tmp_path / name, seed)
    return tmp_path


def made(folder: Path, **changes: Any) -> Recipe:
    said = recipe_dict(folder, **{"fisher": {"save": True}, "output": None, **changes})
    return Recipe.from_dict({key: value for key, value in said.items() if value is not None})


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


class TestAdapters:
    """Two adapters of one base are coded like full checkpoints."""

    def test_like_full_checkpoints(self, adapters: Path) -> None:
        ensemble = encode(made(adapters))
        ensemble.save_pretrained(adapters / "coded")
        full = adapters / "full"
        for name in ("low", "high"):
            load_expert(str(adapters / name)).save_pretrained(full / name)
        shutil.copytree(adapters / "digits", full / "digits")
        encode(made(full)).save_pretrained(full / "coded")
        assert same(weights(adapters / "coded"), weights(full / "coded"))
        said = json.loads((full / "coded" / "coin.json").read_text())
        assert "base" not in said["experts"][0], "full checkpoints are recorded as before"
        assert "dtype" not in said

        said = json.loads((adapters / "coded" / "coin.json").read_text())
        assert [expert["base"] for expert in said["experts"]] == ["../base", "../base"]
        revision = folder_revision(adapters / "base")
        assert [expert["base_revision"] for expert in said["experts"]] == [revision] * 2
        card = (adapters / "coded" / "README.md").read_text()
        assert f"an adapter merged into `../base` (a folder) at `{revision}`" in card

        again = CodedEnsemble.from_pretrained(adapters / "coded", experts=True)
        assert again.experts is not None
        assert again.experts[0].base is not None
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for missing in ([], ["low"], ["high"]):
            pairs = zip(ensemble(x, missing), again(x, missing), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        assert evaluate(adapters / "coded").erasures == ensemble.result.erasures

        recode(adapters / "coded", adapters / "same")
        assert same(weights(adapters / "same"), weights(adapters / "coded")), "the bits of encode"
        recode(
            adapters / "coded", adapters / "wider", add=[Newcomer(str(adapters / "third"), "low")]
        )
        said = json.loads((adapters / "wider" / "coin.json").read_text())
        assert [expert["base_revision"] for expert in said["experts"]] == [revision] * 3
        CodedEnsemble.from_pretrained(adapters / "wider", experts=True)

        (adapters / "base" / "more.txt").write_text("changed")
        with pytest.raises(InputError, match=r"^the base of expert 'low': the folder "):
            CodedEnsemble.from_pretrained(adapters / "coded", experts=True)

    def test_a_base_in_the_recipe(self, adapters: Path) -> None:
        place = (adapters / "base").rename(adapters / "moved")
        recipe = recipe_dict(adapters, output=str(adapters / "coded"))
        for expert in recipe["experts"]:
            expert |= {"base": str(place), "base_revision": folder_revision(place)}
        assert encode(Recipe.from_dict(recipe)).coin.experts[0].base == str(place)
        recipe["experts"][1]["base_revision"] = "sha256:0"
        with pytest.raises(InputError, match="the base of expert 'high'"):
            encode(Recipe.from_dict(recipe))

    def test_a_base_that_is_gone(
        self, adapters: Path, coin_hf: Callable[..., tuple[int, str, str]]
    ) -> None:
        (adapters / "base").rename(adapters / "moved")
        file = adapters / "recipe.json"
        file.write_text(json.dumps(recipe_dict(adapters)))
        code, _, err = coin_hf("encode", str(file))
        assert code == 2
        assert "error: the base of expert 'low': there is no folder" in err
        assert "Traceback" not in err
        assert not (adapters / "coded").exists()

    def test_the_card_names_both_on_the_hub(self, adapters: Path) -> None:
        ensemble = encode(made(adapters))
        said = ensemble.coin.dump()
        for expert in said["experts"]:
            expert |= {"model": "me/low", "base": "/models/base"}
        said["datasets"] = {key: {"path": "me/digits"} for key in said["datasets"]}
        with pytest.raises(InputError, match="names the folder '/models/base' of this machine"):
            CoinRecord.of(said).moved(inside(adapters, "me/coded"))
        said = ensemble.result.dump()
        for expert in said["experts"]:
            expert |= {"model": f"me/{expert['name']}", "base": "google/base"}
        assert model_card(said, "me/coded").data.base_model == ["me/low", "google/base", "me/high"]


class TestMakers:
    """timm's network saved by timm and by transformers."""

    def test_to_the_bit(self, world: Path, tmp_path: Path) -> None:
        for seed, (name, labels) in enumerate({"low": range(5), "high": range(5, 10)}.items()):
            model = timm_model(seed)
            fit_classifier(model, digits(slice(0, 200)), list(labels))
            for kind in ("timm", "mixed"):
                place = save_timm(tmp_path / kind / name, model)
        wrapper = AutoModelForImageClassification.from_pretrained(place)
        shutil.rmtree(place)
        wrapper.save_pretrained(place)
        for kind in ("timm", "mixed"):
            shutil.copytree(world / "digits", tmp_path / kind / "digits")
        one, other = (encode(made(tmp_path / kind)) for kind in ("timm", "mixed"))
        assert same(dict(one.model.state_dict()), dict(other.model.state_dict()))
        assert one.result.erasures == other.result.erasures
        one.save_pretrained(tmp_path / "one")
        other.save_pretrained(tmp_path / "other")
        assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))
        recode(tmp_path / "other", tmp_path / "again")
        assert same(weights(tmp_path / "again"), weights(tmp_path / "one"))


class TestDtype:
    """`dtype` in the recipe, and experts that differ in theirs."""

    @pytest.fixture
    def pair(self, world: Path, tmp_path: Path) -> Path:
        shutil.copytree(world / "digits", tmp_path / "digits")
        for seed, name in enumerate(("low", "high")):
            model = timm_model(seed)
            fit_classifier(model, digits(slice(0, 200)), range(10))
            save_timm(tmp_path / name, model)
        return tmp_path

    @pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
    def test_asked_for(self, pair: Path, dtype: str) -> None:
        ensemble = encode(made(pair, dtype=dtype))
        ensemble.save_pretrained(pair / "coded")
        kind = getattr(torch, dtype)
        stored = weights(pair / "coded")
        assert {v.dtype for v in stored.values() if v.is_floating_point()} == {kind}
        assert json.loads((pair / "coded" / "coin.json").read_text())["dtype"] == dtype
        again = CodedEnsemble.from_pretrained(pair / "coded", experts=True)
        assert again.coin.recipe.dtype == dtype
        assert again.result.run.precision == dtype
        for one, other in zip(ensemble.experts or (), again.experts or (), strict=True):
            assert same(dict(one.model.state_dict()), dict(other.model.state_dict()))
        recode(pair / "coded", pair / "same")
        assert same(weights(pair / "same"), stored)
        assert json.loads((pair / "same" / "coin.json").read_text())["dtype"] == dtype
        assert same(dict(encode(again.coin.recipe).model.state_dict()), stored)

    @pytest.mark.filterwarnings("ignore:the experts' statistics differ")  # by rounding
    def test_the_widest(self, pair: Path) -> None:
        state = load_file(pair / "high" / "model.safetensors")
        half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in state.items()}
        save_file(half, pair / "high" / "model.safetensors", metadata={"format": "pt"})
        with pytest.warns(UserWarning, match=r"'low' float32, 'high' bfloat16\), and are coded in"):
            ensemble = encode(made(pair))
        ensemble.save_pretrained(pair / "coded")
        assert "dtype" not in json.loads((pair / "coded" / "coin.json").read_text())
        again = CodedEnsemble.from_pretrained(pair / "coded", experts=True)
        assert {v.dtype for e in again.experts or () for v in e.parameters.values()} == {
            torch.float32
        }
        recode(pair / "coded", pair / "same")
        assert same(weights(pair / "same"), weights(pair / "coded"))

    def test_no_dtype(self, pair: Path) -> None:
        with pytest.raises(InputError, match="dtype"):
            made(pair, dtype="int8")

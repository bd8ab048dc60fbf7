"""The pixels that a network gets: upright, scaled by their depth, as its own library feeds them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from builders import (
    SIZED,
    digits,
    recipe_dict,
    save_digits,
    save_timm,
    save_transformers,
    timm_model,
)
from datasets import Dataset
from timm.data import create_transform, resolve_model_data_config

from coin_hf import CodedEnsemble, InputError, Recipe, encode, load_expert
from coin_hf.experts.preprocessing import eight_bits

IMAGE = digits(slice(3, 4))[0]["image"].resize((40, 24))
FORMS: dict[str, dict[str, Any]] = {
    "nested": {"pretrained_cfg": {**SIZED, "input_size": [3, 48, 40], "crop_pct": 0.8}},
    "flat": {**SIZED, "input_size": [3, 48, 40], "crop_mode": "border", "crop_pct": 0.9},
    "flat, labels": {**SIZED, "mean": [0.2, 0.3, 0.4], "labels": list("abcdefghij")},
    "grey": {
        "pretrained_cfg": {**SIZED, "mean": [0.4], "std": [0.2]},
        "model_args": {"in_chans": 1},
    },
    "bare": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_pixels_and_logits_are_timms_own(tmp_path: Path, form: str) -> None:
    config = FORMS[form]
    channels = config.get("model_args", {}).get("in_chans", 3)
    folder = save_timm(tmp_path / "e", timm_model(0, in_chans=channels))
    text = {"architecture": "test_resnet", "num_classes": 10, **config}
    (folder / "config.json").write_text(json.dumps(text))
    expert = load_expert(str(folder))
    own = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(own), is_training=False)
    for mode in ("L", "RGB"):
        image = IMAGE.convert(mode)
        x = transform(image.convert("RGB" if channels == 3 else "L"))
        assert torch.equal(expert.preprocessing(image), x)
        with torch.no_grad():
            assert torch.equal(expert.model(x[None]), own(x[None]))


@pytest.mark.slow
def test_a_flat_config_is_written_again_with_its_sizes(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        folder = save_timm(tmp_path / name, timm_model(seed))
        text = {"architecture": "test_resnet", "num_classes": 10, **FORMS["flat"]}
        (folder / "config.json").write_text(json.dumps(text))
    digits(slice(0, 40)).to_parquet(tmp_path / "d" / "train-00000-of-00001.parquet")
    digits(slice(40, 80)).to_parquet(tmp_path / "d" / "test-00000-of-00001.parquet")
    recipe = {
        "experts": [{"model": str(tmp_path / name), "dataset": "d"} for name in "ab"],
        "datasets": {"d": {"path": str(tmp_path / "d")}},
        "samples": {"per_expert": 4},
        "lam": 0.1,
    }
    encode(Recipe.from_dict(recipe)).save_pretrained(tmp_path / "coded")
    ensemble = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    assert torch.equal(ensemble.preprocess(IMAGE), ensemble.experts[0].preprocessing(IMAGE))
    own = timm.create_model(f"local-dir:{tmp_path / 'coded'}", pretrained=True)
    transform = create_transform(**resolve_model_data_config(own), is_training=False)
    assert torch.equal(transform(IMAGE.convert("RGB")), ensemble.preprocess(IMAGE))


def test_channels_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    folder = save_timm(
        tmp_path / "e", timm_model(0, in_chans=1), model_args={"in_chans": 1}
    )  # with three means
    with pytest.raises(InputError, match=r"cannot be preprocessed .*: check its metadata, and the"):
        load_expert(str(folder)).preprocessing(IMAGE)


def test_sixteen_bits_are_scaled() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(np.asarray(eight_bits(deep)), grey)
    assert eight_bits(deep).mode == "L"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        image = IMAGE.convert("RGB").convert(mode)
        assert eight_bits(image) is image


@pytest.mark.parametrize(("mode", "kind"), [("I", "integers"), ("F", "floats")])
def test_pixels_without_a_scale_are_refused(tmp_path: Path, mode: str, kind: str) -> None:
    expert = load_expert(str(save_timm(tmp_path / "e", timm_model(0))))
    with pytest.raises(InputError, match=f"32-bit {kind}, whose range is not defined: scale"):
        expert.preprocessing(IMAGE.convert(mode))


def test_an_image_without_breadth_is_refused(tmp_path: Path) -> None:
    expert = load_expert(str(save_timm(tmp_path / "e", timm_model(0))))
    assert expert.preprocessing(PIL.Image.new("L", (1, 1000))).shape == (3, 32, 32)
    with pytest.raises(InputError, match="an image of 1 x 1001 pixels is too narrow"):
        expert.preprocessing(PIL.Image.new("L", (1, 1001)))


def test_a_sideways_photo_is_turned_upright(tmp_path: Path) -> None:
    expert = load_expert(str(save_timm(tmp_path / "e", timm_model(0))))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    IMAGE.rotate(90, expand=True).save(tmp_path / "x.png", exif=exif)
    with PIL.Image.open(tmp_path / "x.png") as sideways:
        assert torch.equal(expert.preprocessing(sideways), expert.preprocessing(IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize("changed", [[], [7, 30]])
def test_images_of_several_shapes_are_refused_before_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: list[int]
) -> None:
    """A processor that takes images as they come; two test images have another size."""
    for seed, name in enumerate(("low", "high")):
        folder = save_transformers(tmp_path / name, seed, size=8)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        settings |= {"do_resize": False}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "digits").mkdir()
    data = digits(slice(0, 60))
    data.to_parquet(tmp_path / "digits/train-00000-of-00001.parquet")
    images = [
        row["image"].resize((9, 8)) if i in changed else row["image"] for i, row in enumerate(data)
    ]
    changed_data = {"image": images, "label": data["label"][:]}
    Dataset.from_dict(changed_data, features=data.features).to_parquet(
        tmp_path / "digits/test-00000-of-00001.parquet"
    )
    recipe = Recipe.from_dict(recipe_dict(tmp_path, samples={"per_expert": 2}))
    if not changed:
        assert encode(recipe).result.erasures
        return
    monkeypatch.setattr("coin_hf.pipeline.run_coder", None)  # not reached
    with pytest.raises(InputError, match=r"become inputs of different shapes, \(3, 8, 8\) and"):
        encode(recipe)


def test_images_of_another_size_than_the_networks_are_refused_before_computing(
    tmp_path: Path,
) -> None:
    for seed, name in enumerate(("low", "high")):
        folder = save_transformers(tmp_path / name, seed, size=16)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        settings |= {"do_resize": False}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    save_digits(tmp_path / "digits", 40, 40)
    recipe = Recipe.from_dict(recipe_dict(tmp_path, samples={"per_expert": 2}))
    with pytest.raises(InputError, match=r"'low' cannot take the input of shape \(3, 8, 8\) that"):
        encode(recipe)

"""Every small network of timm and eight families of transformers, in every form of their configs.

Pixels and logits equal the library's own to the bit; where the library itself fails, or a network
cannot take what its preprocessing makes, there is one sentence.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from builders import SIZED, families, randomise, save_timm, timm_model
from PIL.Image import Image, fromarray
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from coin_hf import InputError, load_expert
from coin_hf.experts.trial import check_runs

NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
IMAGES = [fromarray(NOISE), fromarray(NOISE[:, :40]), fromarray(NOISE[..., 0])]

TIMM: dict[str, dict[str, Any]] = {
    "nested": {"pretrained_cfg": SIZED},
    "flat": {**SIZED, "crop_mode": "border", "crop_pct": 0.9},
    "flat, old names": {**SIZED, "labels": list("abcdefghij")},
    "bare": {},
    "large": {"pretrained_cfg": {**SIZED, "input_size": [3, 96, 96]}},
    "wide": {"pretrained_cfg": {**SIZED, "input_size": [3, 64, 96], "crop_pct": 0.8}},
    "squashed": {"pretrained_cfg": {**SIZED, "crop_mode": "squash", "crop_pct": 0.7}},
    "random": {"pretrained_cfg": {**SIZED, "interpolation": "random"}},
    "no crop": {"pretrained_cfg": {k: v for k, v in SIZED.items() if k != "crop_pct"}},
    "test size": {"pretrained_cfg": {**SIZED, "test_input_size": [3, 96, 96], "test_crop_pct": 1}},
    "grey": {
        "pretrained_cfg": {**SIZED, "input_size": [1, 32, 32], "mean": [0.4], "std": [0.2]},
        "model_args": {"in_chans": 1},
    },
    "grey, three means": {"pretrained_cfg": SIZED, "model_args": {"in_chans": 1}},
    "grey, one mean": {
        "pretrained_cfg": {**SIZED, "mean": [0.4], "std": [0.2]},
        "model_args": {"in_chans": 1},
    },
    "img_size": {
        "pretrained_cfg": {**SIZED, "input_size": [3, 64, 64]},
        "model_args": {"img_size": 64},
    },
    "other img_size": {"pretrained_cfg": SIZED, "model_args": {"img_size": 64}},
    "pooled": {"pretrained_cfg": SIZED, "model_args": {"global_pool": "max"}},
    "names": {"pretrained_cfg": SIZED, "label_names": list("abcdefghij")},
    "mapped names": {
        "pretrained_cfg": SIZED,
        "label_names": {str(i): letter for i, letter in enumerate("abcdefghij")},
    },
    "half": {"pretrained_cfg": SIZED},
}


def logits_and_pixels(
    model: torch.nn.Module, prepare: Callable[[Image], torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each image's pixels and logits."""
    dtype = next(model.parameters()).dtype
    found = []
    with torch.no_grad():
        for image in IMAGES:
            x = prepare(image)
            y = model(x[None].to(dtype))
            found.append((x, getattr(y, "logits", y)))
    return found


def equal(ours: list[tuple[torch.Tensor, ...]], theirs: list[tuple[torch.Tensor, ...]]) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def ours(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]] | str:
    """What coin-hf computes, or its sentence."""
    try:
        expert = load_expert(str(folder))
        for image in (None, *IMAGES):
            check_runs(expert, image)
        return logits_and_pixels(expert.model, expert.preprocessing)
    except InputError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("form", TIMM)
@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_timm(tmp_path: Path, name: str, form: str) -> None:
    config: dict[str, Any] = {"architecture": name, "num_classes": 10, **TIMM[form]}
    arguments = config.get("model_args", {})
    folder = tmp_path / "e"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    reason = None
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except (TypeError, AssertionError) as error:  # timm's own: nothing to compare with
        model, reason = timm.create_model(name, num_classes=10), str(error)
    randomise(model, 0, 0.05)
    if form == "half":
        model.half()
    save_file(model.state_dict(), folder / "model.safetensors")
    found = ours(folder)
    if reason is not None:
        assert reason in str(found)
        return
    try:
        own = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(own), is_training=False)
        mode = "RGB" if arguments.get("in_chans", 3) == 3 else "L"
        expected = logits_and_pixels(own, lambda image: transform(image.convert(mode)))
    except (AssertionError, RuntimeError, ValueError, KeyError):
        assert isinstance(found, str)
        assert found.startswith("expert 'e'") or "cannot be preprocessed" in found, found
        return
    assert not isinstance(found, str), found
    if form == "half":  # timm loads 16 bits into a network of 32, coin-hf keeps what is stored
        own.half()
        expected = logits_and_pixels(own, lambda image: transform(image.convert(mode)))
    assert equal(found, expected)
    names = load_expert(str(folder)).label_names
    assert names == (tuple("abcdefghij") if "names" in form else None)


SIZE = {"height": 32, "width": 32}
PROCESSORS: dict[str, dict[str, Any]] = {
    "today": {"image_processor_type": "ViTImageProcessor", "size": SIZE},
    "fast": {"image_processor_type": "ViTImageProcessorFast", "size": SIZE},
    "extractor": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32},
    "number": {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 3},
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.875,
    },
    "cropped": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": SIZE,
    },
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": SIZE, "crop_size": SIZE},
    "raw": {"image_processor_type": "ViTImageProcessor", "size": SIZE, "do_normalize": False},
    "unscaled": {"image_processor_type": "ViTImageProcessor", "size": SIZE, "do_rescale": False},
    "statistics": {
        "image_processor_type": "ViTImageProcessor",
        "size": SIZE,
        "image_mean": [0.2, 0.3, 0.4],
        "image_std": [0.3, 0.2, 0.1],
    },
    "large": {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 64}},
    "as it is": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    "unknown": {"image_processor_type": "NoSuchImageProcessor"},
    "none": {},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", PROCESSORS)
@pytest.mark.parametrize("family", sorted(families()))
def test_transformers(tmp_path: Path, family: str, form: str) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = tmp_path / "e"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = families()[family]()
    randomise(model, 0, 0.05).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[form]))
    found = ours(folder)
    try:
        own = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
        expected = logits_and_pixels(
            own,
            lambda image: processor(images=image.convert("RGB"), return_tensors="pt")[
                "pixel_values"
            ][0],
        )
    except Exception as error:  # transformers raises anything
        reason = str(error)
    else:
        assert not isinstance(found, str), found
        assert equal(found, expected)
        return
    assert isinstance(found, str), reason


@pytest.mark.filterwarnings("ignore")
def test_a_timm_network_that_transformers_saved(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    save_timm(tmp_path / "timm", timm_model(0), label_names=list("abcdefghij"))
    wrapper = AutoModelForImageClassification.from_pretrained(tmp_path / "timm")
    wrapper.save_pretrained(tmp_path / "e")
    saved, own = (load_expert(str(tmp_path / name)) for name in ("e", "timm"))
    assert saved.label_names == own.label_names == tuple("abcdefghij")
    pairs = [logits_and_pixels(each.model, each.preprocessing) for each in (saved, own)]
    assert equal(*pairs)
    assert equal(logits_and_pixels(wrapper.eval(), own.preprocessing), pairs[0])

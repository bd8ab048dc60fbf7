from pathlib import Path

import numpy as np
import pytest
import torch
from builders import NORMALISATION, save_timm, save_transformers, timm_model
from PIL.Image import Image, fromarray

from coin_hf.experts.expert import load_expert
from coin_hf.experts.preprocessing import timm_preprocessing

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
SETTINGS = {"input_size": [3, 8, 8], "crop_pct": 1.0, **NORMALISATION}


def test_timm_normalises_each_channel() -> None:
    settings = {**SETTINGS, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 2.0]}
    x = timm_preprocessing(settings, 3)(fromarray(PIXELS))
    assert x.shape == (3, 8, 8)
    assert x.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(settings["mean"], settings["std"], strict=True)):
        expected = (torch.tensor(PIXELS[:, :, channel]) / 255 - mean) / std
        torch.testing.assert_close(x[channel], expected)


def test_grayscale_becomes_rgb() -> None:
    gray = fromarray(PIXELS[:, :, 0])
    assert gray.mode == "L"
    x = timm_preprocessing(SETTINGS, 3)(gray)
    expected = (torch.tensor(PIXELS[:, :, 0]) / 255 - 0.5) / 0.5
    torch.testing.assert_close(x, expected.expand(3, 8, 8))


def test_colour_becomes_grayscale_for_a_network_of_one_channel() -> None:
    settings = {**SETTINGS, "input_size": [1, 8, 8], "mean": [0.5], "std": [0.5]}
    x = timm_preprocessing(settings, 1)(fromarray(PIXELS))
    expected = (torch.tensor(np.array(fromarray(PIXELS).convert("L"))) / 255 - 0.5) / 0.5
    torch.testing.assert_close(x, expected[None])


def converted(mode: str) -> Image:
    return fromarray(PIXELS).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_of_pillow_is_taken(mode: str) -> None:
    image = converted(mode)
    x = timm_preprocessing(SETTINGS, 3)(image)
    assert torch.equal(x, timm_preprocessing(SETTINGS, 3)(image.convert("RGB")))
    assert image.mode == mode


def test_a_grayscale_timm_expert(tmp_path: Path) -> None:
    model = timm_model(0, in_chans=1)
    folder = save_timm(tmp_path / "gray", model, model_args={"in_chans": 1}, mean=[0.5], std=[0.5])
    expert = load_expert(str(folder))
    x = expert.preprocessing(fromarray(PIXELS))
    assert x.shape == (1, 32, 32)
    assert expert.model(x[None]).shape == (1, 10)


def test_transformers_use_their_own_processor(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    folder = save_transformers(tmp_path / "vit")
    preprocessing = load_expert(str(folder)).preprocessing
    image = fromarray(PIXELS)
    own = ViTImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    assert torch.equal(preprocessing(image), own["pixel_values"][0])
    assert torch.equal(preprocessing(image.convert("L")), preprocessing(converted("L")))
    assert preprocessing(converted("L")).shape == (3, 32, 32)
    assert preprocessing.settings["size"] == {"height": 32, "width": 32}


def test_settings_hold_no_tuple() -> None:
    settings = timm_preprocessing({"input_size": (3, 8, 8)}, 3).settings
    assert settings["mean"] == [0.485, 0.456, 0.406]
    assert settings["input_size"] == [3, 8, 8]

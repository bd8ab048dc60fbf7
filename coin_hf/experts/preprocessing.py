"""Preprocess an image into an expert's input tensor, with settings that can be compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image, fromarray
from PIL.ImageOps import exif_transpose
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from coin_hf.errors import InputError, boundary

NARROWEST = 1000
"""Largest ratio of an image's sides: resizing its shorter side enlarges the longer one alike."""


@dataclass(frozen=True)
class Preprocessing:
    """An expert's own preprocessing, as its repository declares it."""

    settings: dict[str, Any]
    """Size, mean, standard deviation, interpolation, crop: equal settings mean equal tensors."""
    channels: int
    """Channels of the network's input: 3, or 1 for grayscale networks."""
    _transform: Callable[[Image], Tensor]
    processor: Any = None
    """The transformers image processor, to be saved with a network; None for timm, whose
    config.json holds the settings."""

    def __call__(self, image: Image) -> Tensor:
        """Return the network's input for one image: the one way for samples, tests and users.

        Args:
            image: A PIL image. It is turned upright by its EXIF orientation; 16 bits a pixel are
                scaled to 8; grayscale becomes RGB where the network wants 3 channels, and colour
                becomes grayscale where it wants 1.

        Returns:
            A float tensor of shape (C, H, W).

        Raises:
            InputError: If its pixels have no defined scale (32 bits), or the library's own
                preprocessing fails on it.
        """
        if max(image.size) > NARROWEST * min(image.size):
            raise InputError(
                f"an image of {image.width} x {image.height} pixels is too narrow to be resized: "
                "its header is damaged, or it is no picture"
            )
        what = f"an image of mode {image.mode} and size {image.size} cannot be preprocessed"
        with boundary(what, "check its metadata, and the expert's `mean`, `std` and size"):
            upright = eight_bits(exif_transpose(image))
            return self._transform(upright.convert("RGB" if self.channels == 3 else "L"))


def eight_bits(image: Image) -> Image:
    """Scale a grayscale image of 16 bits a pixel to 8; Pillow's own conversion would clip it.

    Args:
        image: An image of any mode.

    Returns:
        A grayscale image of 8 bits for 16 bits; other modes as they are.

    Raises:
        InputError: If the pixels are 32-bit integers or floats: no range is agreed for them.
    """
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.float64)  # 0 ... 65535
        return fromarray(np.round(deep / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            f"its pixels are 32-bit {'integers' if image.mode == 'I' else 'floats'}, whose range "
            "is not defined: scale them to 8 or 16 bits and save it again"
        )
    return image


def timm_preprocessing(pretrained_cfg: dict[str, Any], channels: int) -> Preprocessing:
    """Return the evaluation preprocessing of a timm network.

    Args:
        pretrained_cfg: The network's `pretrained_cfg`.
        channels: Channels of its input.

    Returns:
        timm's own transform for these settings.
    """
    settings = resolve_data_config({}, pretrained_cfg=pretrained_cfg)
    transform = create_transform(**settings, is_training=False)
    return Preprocessing(_plain(settings), channels, transform)


def transformers_preprocessing(folder: Path, name: str, channels: int) -> Preprocessing:
    """Return the preprocessing of a transformers network.

    Args:
        folder: Folder with `preprocessor_config.json`.
        name: The expert's name, for messages.
        channels: Channels of its input.

    Returns:
        The folder's image processor.

    Raises:
        InputError: If the folder holds no image processor.
    """
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(
            f"expert '{name}' has no image processor: its repository needs a "
            "preprocessor_config.json, written by `AutoImageProcessor.save_pretrained`"
        )
    with boundary(
        f"expert '{name}' has no image processor that transformers can load",
        "write preprocessor_config.json by `AutoImageProcessor.save_pretrained`",
    ):
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return processor_preprocessing(processor, channels)


def processor_preprocessing(processor: Any, channels: int) -> Preprocessing:
    """Return the preprocessing of a transformers image processor.

    Args:
        processor: The processor; with None, no image can be preprocessed.
        channels: Channels of the network's input.

    Returns:
        The processor as a `Preprocessing`.
    """

    def transform(image: Image) -> Tensor:
        if processor is None:
            raise InputError("this network has no image processor: give input tensors")
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    settings = {} if processor is None else _plain(processor.to_dict())
    return Preprocessing(settings, channels, transform, processor)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert tuples to lists: a library's defaults are tuples, a file's settings are lists."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}

"""Preprocess an image into an expert's input tensor, with settings that can be compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from coin_hf.errors import InputError


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
        """Return the network's input for one image.

        Args:
            image: A PIL image of any mode; grayscale becomes RGB if the network expects 3
                channels, and colour becomes grayscale if it expects 1.

        Returns:
            A float tensor of shape (C, H, W).
        """
        return self._transform(image.convert("RGB" if self.channels == 3 else "L"))


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

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expert '{name}' has no image processor: its repository needs a "
            "preprocessor_config.json, written by `AutoImageProcessor.save_pretrained`"
        ) from error

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

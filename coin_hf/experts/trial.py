"""Run a network once on the input that its preprocessing makes, before anything is computed."""

import numpy as np
import torch
from PIL.Image import Image, fromarray

from coin_hf.errors import InputError, boundary
from coin_hf.experts.expert import Expert
from coin_hf.experts.preprocessing import Preprocessing
from coin_hf.networks.inputs import fit_to
from coin_hf.networks.logits import call

NOISE = fromarray(np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8))


def makes_one_shape(preprocessing: Preprocessing) -> bool:
    """Say whether images of any size become inputs of one shape.

    Args:
        preprocessing: An expert's preprocessing.

    Returns:
        False where it neither crops nor resizes to a fixed height and width.
    """
    return preprocessing(NOISE).shape == preprocessing(NOISE.rotate(90, expand=True)).shape


@torch.no_grad()
def check_runs(expert: Expert, image: Image | None = None) -> None:
    """Check that a network takes its own preprocessing's input and returns K finite logits.

    Args:
        expert: The expert.
        image: What is passed through; by default an image of noise, if all sizes become one shape.

    Raises:
        InputError: If it does not, such as where config.json says one size and its preprocessing
            another.
    """
    if image is None and not makes_one_shape(expert.preprocessing):
        return  # the images decide: one of them is passed through where they are opened
    x = fit_to(expert.preprocessing(image or NOISE)[None], expert.model)
    with boundary(
        f"expert '{expert.name}' cannot take the input of shape {tuple(x.shape[1:])} that its "
        "preprocessing makes",
        "make the sizes and channels of its network and its preprocessing agree in its "
        "configuration files",
    ):
        logits = call(expert.model, x)
    if logits.shape != (1, expert.num_classes):
        raise InputError(
            f"expert '{expert.name}' returns {logits.shape[1]} logits, but its configuration says "
            f"{expert.num_classes} classes: correct the number there"
        )
    if not logits.isfinite().all():
        raise InputError(
            f"expert '{expert.name}' gives logits that are not finite in {logits.dtype}, as its "
            "weights are stored: save it in float32, or from before its training diverged"
        )

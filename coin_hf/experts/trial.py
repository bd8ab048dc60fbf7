"""Run a network once on the input that its preprocessing makes, before anything is computed."""

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from coin_hf.errors import InputError, boundary
from coin_hf.experts.expert import Expert
from coin_hf.experts.probes import probe_batch, probe_singles
from coin_hf.experts.text_preprocessing import AnyPreprocessing, TextPreprocessing
from coin_hf.networks.inputs import Inputs, count, fit_to, stack
from coin_hf.networks.logits import call

NOISE = fromarray(np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8))


def makes_one_shape(preprocessing: AnyPreprocessing) -> bool:
    """Say whether inputs of any size become batches without more ado.

    Args:
        preprocessing: An expert's preprocessing.

    Returns:
        False where it neither crops nor resizes images to a fixed height and width; texts are
        padded.
    """
    if isinstance(preprocessing, TextPreprocessing):
        return True
    return preprocessing(NOISE).shape == preprocessing(NOISE.rotate(90, expand=True)).shape


@torch.no_grad()
def check_runs(expert: Expert, image: Image | None = None) -> None:
    """Check that a network takes its own preprocessing's input and returns K finite logits.

    Args:
        expert: The expert.
        image: What is passed through; by default an image of noise, if all sizes become one shape,
            or a few texts.

    Raises:
        InputError: If it does not, such as where config.json says one size and its preprocessing
            another; or if it answers a padded text otherwise than that text alone.
    """
    prepare = expert.preprocessing
    if isinstance(prepare, TextPreprocessing):
        logits = _checked(expert, probe_batch(prepare), "tokens", "vocabulary and lengths")
        alone = [call(expert.model, fit_to(x, expert.model)) for x in probe_singles(prepare)]
        _check_padding(expert, prepare, logits, torch.cat(alone))
        return
    if image is None and not makes_one_shape(prepare):
        return  # the images decide: one of them is passed through where they are opened
    x = stack([prepare(image or NOISE)])
    _checked(expert, x, f"input of shape {tuple(x.shape[1:])}", "sizes and channels")


def _checked(expert: Expert, x: Inputs, what: str, sides: str) -> Tensor:
    """Run a batch; return its logits, which must be K finite ones for each input."""
    with boundary(
        f"expert '{expert.name}' cannot take the {what} that its preprocessing makes",
        f"make the {sides} of its network and its preprocessing agree in its configuration files",
    ):
        logits = call(expert.model, fit_to(x, expert.model))
    if logits.shape != (count(x), expert.num_classes):
        raise InputError(
            f"expert '{expert.name}' returns {logits.shape[1]} logits, but its configuration says "
            f"{expert.num_classes} classes: correct the number there"
        )
    if not logits.isfinite().all():
        raise InputError(
            f"expert '{expert.name}' gives logits that are not finite in {logits.dtype}, as its "
            "weights are stored: save it in float32, or from before its training diverged"
        )
    return logits


def _check_padding(
    expert: Expert, prepare: TextPreprocessing, padded: Tensor, alone: Tensor
) -> None:
    """Refuse a network whose answer to a text depends on the texts beside it in a batch."""
    allowed = torch.finfo(padded.dtype).eps ** 0.5 * alone.abs().max()
    if (padded - alone).abs().max() > allowed:
        raise InputError(
            f"expert '{expert.name}' answers a text otherwise where it is padded to the length of "
            "another: set `pad_token_id` in its config.json to the tokenizer's "
            f"({prepare.processor.pad_token_id}), or give a network that leaves padding out"
        )

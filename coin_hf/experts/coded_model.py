"""Build coded models as networks, and save them."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coin_hf.coders import average_buffers
from coin_hf.erasure.betas import Rows
from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.experts.merged_config import merged_names, timm_config
from coin_hf.hub.layout import coded_folder


def build_coded(
    experts: Sequence[Expert],
    parameters: Mapping[str, Tensor],
    *,
    betas: Sequence[float],
    number: int = 0,
) -> Expert:
    """Load coded parameters into a copy of expert 0's network.

    Floating-point buffers (BatchNorm statistics) are averaged; integer ones are expert 0's.

    Args:
        experts: Aligned experts.
        parameters: theta_c by name.
        betas: Coding weights, shape (N,).
        number: Index of the coded model, for messages.

    Returns:
        The coded model, in eval mode, on expert 0's device. Class names that differ among the
        experts are joined ("cat / truck").

    Raises:
        InputError: If a parameter is not finite.

    Example:
        theta = fisher_average([e.parameters for e in experts], fishers, betas=[0.5, 0.5], lam=1e-3)
        build_coded(experts, theta, betas=[0.5, 0.5]).save_pretrained("merged")
    """
    first = experts[0]
    for name, value in parameters.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"coded model {number} would hold numbers that are not finite in '{name}': choose "
                "a smaller lambda or learning rate, or another coder"
            )
    model: Any = copy.deepcopy(first.model)
    buffers = average_buffers([expert.buffers for expert in experts], betas=betas)
    set_values(model, {**parameters, **buffers})
    names = merged_names([expert.label_names for expert in experts])
    if first.library == "timm":
        config = timm_config(first.config, first.num_classes, names)
    else:
        config = first.config
        if names is not None:
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: i for i, name in enumerate(names)}
    return replace(
        first,
        name=f"coded model {number}" if number else "coded model",
        repo="",
        revision="",
        model=model,
        config=config,
        label_names=names,
        license=None,
    )


def build_all_coded(
    experts: Sequence[Expert], thetas: Sequence[Mapping[str, Tensor]], rows: Rows
) -> list[Expert]:
    """Build all coded models from their parameters.

    Args:
        experts: The N experts.
        thetas: Parameters of each of the M coded models.
        rows: Their betas, shape (M, N).

    Returns:
        The coded models.
    """
    return [
        build_coded(experts, theta, betas=row, number=c)
        for c, (theta, row) in enumerate(zip(thetas, rows, strict=True))
    ]


@torch.no_grad()
def set_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy parameters and persistent buffers into a network, in place.

    Args:
        model: The network.
        values: Some of its parameters and persistent buffers by name.
    """
    state = model.state_dict()
    targets = dict(model.named_parameters())
    for name, value in values.items():
        targets.get(name, state.get(name)).copy_(value)  # type: ignore[union-attr]  # it exists


def save_coded(folder: Path, coded: Sequence[Expert]) -> None:
    """Save coded models in their library's format, the first one at the root.

    Args:
        folder: The coded repository being written.
        coded: The coded models, in order.
    """
    for number, model in enumerate(coded):
        place = folder / coded_folder(number)
        model.save_pretrained(place)


def as_stored(expert: Expert, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename values to the parameter names in the library's files.

    transformers names parameters differently in files and networks; its own saving maps them.

    Args:
        expert: An expert.
        values: A tensor for each parameter, by the network's names.

    Returns:
        The tensors by their names in a checkpoint file.
    """
    if expert.library == "timm":
        return dict(values)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = expert.model
        model.save_pretrained(folder, state_dict={n: v.cpu() for n, v in values.items()})
        files = sorted(Path(folder).glob("*.safetensors"))
        return {name: value for file in files for name, value in load_file(file).items()}

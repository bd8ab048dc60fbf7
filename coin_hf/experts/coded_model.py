"""The coded model as a network: the experts' parameters in, one more expert out."""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coin_hf.experts.expert import Expert
from coin_hf.experts.merged_config import merged_names, timm_config
from coin_hf.hub.layout import coded_folder


def build_coded(
    experts: Sequence[Expert],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    *,
    number: int = 0,
) -> Expert:
    """Put coded parameters into a copy of expert 0's network.

    Args:
        experts: Aligned experts.
        parameters: theta_c by name.
        buffers: The coded model's saved buffers by name.
        number: Which coded model it is, for messages.

    Returns:
        The coded model, in eval mode, on expert 0's device. Where the experts name a class
        differently, it carries all their names ("cat / truck").
    """
    first = experts[0]
    model: Any = copy.deepcopy(first.model)
    load(model, parameters, buffers)
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


@torch.no_grad()
def load(model: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Copy parameters and saved buffers into a network, in place.

    Args:
        model: The network.
        parameters: All its parameters by name.
        buffers: All its saved buffers by name.
    """
    state = model.state_dict()
    targets = dict(model.named_parameters()) | {name: state[name] for name in buffers}
    for name, value in (dict(parameters) | dict(buffers)).items():
        targets[name].copy_(value)


def save_coded(folder: Path, coded: Sequence[Expert]) -> None:
    """Write coded models as their own library reads them, the first one at the root.

    Args:
        folder: A coded repository in the making.
        coded: The coded models, in order.
    """
    for number, model in enumerate(coded):
        place = folder / coded_folder(number)
        place.mkdir(exist_ok=True)
        _save(place, model)


def as_stored(expert: Expert, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name values as the expert's library names the parameters in its files.

    transformers renames parameters between its files and its networks; its own saving knows how.

    Args:
        expert: An expert.
        values: A tensor for each parameter, by the network's names.

    Returns:
        The tensors by the names that a checkpoint's file has.
    """
    if expert.library == "timm":
        return dict(values)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = expert.model
        model.save_pretrained(folder, state_dict={n: v.cpu() for n, v in values.items()})
        files = sorted(Path(folder).glob("*.safetensors"))
        return {name: value for file in files for name, value in load_file(file).items()}


def _save(folder: Path, coded: Expert) -> None:
    if coded.library == "transformers":
        model: Any = coded.model
        model.save_pretrained(folder)
        coded.preprocessing.processor.save_pretrained(folder)
        return
    config = json.dumps(coded.config, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    # Tied weights share memory, which safetensors refuses to write.
    state = {name: value.cpu().clone() for name, value in coded.model.state_dict().items()}
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

"""The coded model as a network: the experts' parameters in, one more expert out."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from coin_hf.experts import Expert
from coin_hf.layout import coded_folder

ORIGIN = ("tag", "license", "origin_url", "url", "file", "source", "hf_hub_id", "hf_hub_filename",
          "custom_load", "paper_ids", "paper_name")  # fmt: skip
"""Keys of timm's `pretrained_cfg` that tell the origin of expert 0's weights, not their use."""


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
    names = _merged_names([expert.label_names for expert in experts])
    if first.library == "timm":
        config = _timm_config(first, names)
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


def _timm_config(expert: Expert, names: tuple[str, ...] | None) -> dict[str, Any]:
    config = copy.deepcopy(expert.config)
    config["num_classes"] = expert.num_classes
    # timm needs it once, beside `architecture`; transformers refuses to find it twice.
    model_args = {k: v for k, v in config.pop("model_args", {}).items() if k != "num_classes"}
    if model_args:
        config["model_args"] = model_args
    declared = config.get("pretrained_cfg", {})
    config["pretrained_cfg"] = {k: v for k, v in declared.items() if k not in ORIGIN}
    config["pretrained_cfg"]["num_classes"] = expert.num_classes
    if list(names or ()) != config.get("label_names"):
        config.pop("label_descriptions", None)
        config.pop("label_names", None)
        if names is not None:
            config["label_names"] = list(names)
    return config


def _merged_names(all_names: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    known = [names for names in all_names if names is not None]
    if not known:
        return None
    return tuple(" / ".join(dict.fromkeys(column)) for column in zip(*known, strict=True))

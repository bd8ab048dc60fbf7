"""Experts: fine-tuned networks from the Hub or a folder, pinned, checked, in eval mode."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import RepoCard
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from yaml import YAMLError

from coin_hf.errors import InputError
from coin_hf.experts.merged_config import names_in
from coin_hf.experts.preprocessing import (
    Preprocessing,
    timm_preprocessing,
    transformers_preprocessing,
)
from coin_hf.hub.client import fetch, pin
from coin_hf.hub.layout import CHECKPOINT_FILES
from coin_hf.recipe.recipe import Library

TIMM_OBJECTS = ("model_args", "pretrained_cfg")

PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True, eq=False)
class Expert:
    """One uncoded network with its origin and its preprocessing."""

    name: str
    repo: str
    """Hub id or folder, as given."""
    revision: str
    """Commit SHA on the Hub, or `sha256:...` of the folder."""
    library: Literal["timm", "transformers"]
    config: dict[str, Any]
    """The content of its config.json."""
    architecture: dict[str, Any]
    """The settings that fix the network's function apart from its weights."""
    model: nn.Module
    num_classes: int
    preprocessing: Preprocessing
    label_names: tuple[str, ...] | None
    license: str | None
    """Licence its card declares, if any."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Its parameters by name, detached, sharing memory with the network."""
        return {name: value.detach() for name, value in self.model.named_parameters()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Its saved buffers by name (BatchNorm statistics), sharing memory with the network."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if name not in parameters}

    @property
    def tied(self) -> dict[str, str]:
        """Names of parameters that are another one's tensor in the files too, with that one's name.

        transformers stores such a tensor once.
        """
        if self.library == "transformers":
            return {}
        first = {id(value): name for name, value in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {name: first[id(value)] for name, value in every if first[id(value)] != name}


def load_expert(
    repo_or_path: str,
    *,
    revision: str | None = None,
    library: Library = "auto",
    device: torch.device | str | None = None,
    name: str | None = None,
) -> Expert:
    """Load one expert.

    Args:
        repo_or_path: Hub id, or folder, of a timm checkpoint (`config.json` with `architecture`
            and `model.safetensors`) or of a transformers image classifier.
        revision: Branch, tag or commit; None for the newest. It is resolved to a commit.
        library: Which library builds it; `auto` reads it from `config.json`.
        device: Where the network goes; by default it stays on the CPU.
        name: Its short name in messages; by default the last part of `repo_or_path`.

    Returns:
        The expert, in eval mode.

    Raises:
        InputError: If the repository or revision does not exist or cannot be reached, holds no
            safetensors, is damaged, does not fit its architecture, or has a value that is not
            finite.
    """
    name = name or Path(repo_or_path).name
    sha = pin(repo_or_path, revision)
    folder = fetch(repo_or_path, sha, CHECKPOINT_FILES)
    config = _config(folder, name)
    if library == "auto":
        library = "timm" if "architecture" in config else "transformers"
    _check_weights(folder, name)
    build = _timm if library == "timm" else _transformers
    with torch.random.fork_rng(devices=[]):  # a network is built with random weights first
        parts = build(folder, config, name)
    expert = Expert(
        name=name,
        repo=repo_or_path,
        revision=sha,
        library=library,
        config=config,
        license=_license(folder),
        **parts,
    )
    for key, value in expert.model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"expert '{name}' has a value that is not finite in '{key}': "
                "use a checkpoint from before its training diverged"
            )
    expert.model.eval().requires_grad_(False)
    if device is not None:
        expert.model.to(device)
    return expert


def _config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"expert '{name}' has no config.json: give a timm or transformers checkpoint"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"expert '{name}': config.json is not JSON ({error}): download it again"
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"expert '{name}': config.json must hold an object, got a list or value")
    return config


def _check_weights(folder: Path, name: str) -> None:
    """Refuse a folder without readable safetensors, before any library opens it."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        held = f"only pickles ({', '.join(pickles)})" if pickles else "no model.safetensors"
        raise InputError(
            f"expert '{name}' holds {held}: coin-hf reads safetensors alone, since a pickle can "
            "run code; convert it at https://huggingface.co/spaces/safetensors/convert or with "
            "safetensors.torch.save_file(torch.load(..., weights_only=True), 'model.safetensors')"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"expert '{name}': {file.name} is damaged or cut short ({error}): "
                "download or save it again"
            ) from error


def _timm(folder: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    architecture = config.get("architecture")
    model_args, pretrained_cfg = (dict(_object(config, key, name)) for key in TIMM_OBJECTS)
    if not isinstance(architecture, str):
        raise InputError(
            f"expert '{name}': config.json names no timm `architecture`, such as 'resnet50' "
            f"(got {architecture!r}): save it with timm's `save_for_hf`, or set `library`"
        )
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"expert '{name}' has no model.safetensors, as timm names its weights")
    model_args.pop("num_classes", None)  # it stands beside `architecture`, and once is enough
    if "num_classes" in config:
        pretrained_cfg["num_classes"] = config["num_classes"]
    try:
        model: Any = timm.create_model(
            architecture, pretrained=False, pretrained_cfg=pretrained_cfg, **model_args
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"expert '{name}': timm {timm.__version__} cannot build '{architecture}' "
            f"({error}): check config.json, or install a newer timm"
        ) from error
    state = load_file(folder / "model.safetensors")
    if dtypes := {value.dtype for value in state.values() if value.dtype.is_floating_point}:
        model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
    _fit(model, state, name)
    channels = model_args.get("in_chans") or model.pretrained_cfg["input_size"][0]
    return {
        "architecture": {"architecture": architecture, **_function(model_args)},
        "model": model,
        "num_classes": int(model.num_classes),
        "preprocessing": timm_preprocessing(model.pretrained_cfg, _known_channels(channels, name)),
        "label_names": names_in(config, "timm", int(model.num_classes)),
    }


def _object(config: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(
            f"expert '{name}': `{key}` in config.json must be an object, got {value!r}"
        )
    return value


def _fit(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load weights, or list every name and shape that does not fit."""
    expected = model.state_dict()
    faults = [f"missing '{key}'" for key in sorted(expected.keys() - state.keys())]
    faults += [f"unexpected '{key}'" for key in sorted(state.keys() - expected.keys())]
    faults += [
        f"'{key}' has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        raise InputError(
            f"expert '{name}': model.safetensors does not fit config.json: {'; '.join(faults)}"
        )
    model.load_state_dict(state)


def _known_channels(channels: int, name: str) -> int:
    if channels not in (1, 3):
        raise InputError(
            f"expert '{name}' takes images of {channels} channels: only 1 and 3 are supported"
        )
    return channels


def _transformers(folder: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    from transformers import AutoModelForImageClassification

    try:
        model, loading = AutoModelForImageClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"expert '{name}': transformers cannot load it as an image classifier "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    faults = [f"missing '{key}'" for key in sorted(loading["missing_keys"])]
    faults += [
        f"'{key}' has shape {tuple(held)}, expected {tuple(expected)}"
        for key, held, expected in sorted(loading["mismatched_keys"])
    ]
    if faults:
        raise InputError(
            f"expert '{name}': model.safetensors does not fit config.json: {'; '.join(faults)}; "
            "give a checkpoint fine-tuned for image classification"
        )
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    generic = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    channels = _known_channels(int(getattr(model.config, "num_channels", 3)), name)
    return {
        "architecture": _function(model.config.to_dict()),
        "model": model,
        "num_classes": int(model.config.num_labels),
        "preprocessing": transformers_preprocessing(folder, name, channels),
        "label_names": None if generic else tuple(labels),
    }


def _function(config: dict[str, Any]) -> dict[str, Any]:
    """Keep of a configuration what changes the network's function in eval mode."""
    beside = ("label", "_name_or_path", "transformers_version", "dtype", "architectures", "drop")
    return {
        key: value
        for key, value in config.items()
        if not any(part in key for part in beside) and key != "problem_type"
    }


def _license(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        data = RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, YAMLError):
        return None  # a card that is not valid YAML declares nothing
    license_name = ModelCardData(**data.to_dict(), ignore_metadata_errors=True).license
    return license_name if isinstance(license_name, str) else None

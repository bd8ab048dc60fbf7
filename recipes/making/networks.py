"""The network that is fine-tuned: from timm or transformers, with a head of its own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from coin_hf.errors import InputError
from coin_hf.experts.expert import load_expert
from coin_hf.experts.finetuning import write_timm_expert
from coin_hf.experts.preprocessing import (
    Preprocessing,
    timm_preprocessing,
    transformers_preprocessing,
)
from coin_hf.hub.client import fetch, pin
from coin_hf.hub.layout import CHECKPOINT_FILES

DATA_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "num_classes")
"""Keys of timm's `pretrained_cfg` that belong to a fine-tuned network."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network with what is needed to train it and to write it."""

    model: Any
    preprocessing: Preprocessing
    label_names: tuple[str, ...]
    origin: str | None
    """Hub id or folder of what it starts from; None for one that was never trained."""
    revision: str | None
    license: str | None
    architecture: str
    library: str
    model_args: dict[str, Any]

    def write(self, folder: Path, card: str) -> None:
        """Write it in its library's own format."""
        if self.library == "timm":
            pretrained_cfg = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in self.model.pretrained_cfg.items()
                if key in DATA_KEYS
            }
            write_timm_expert(
                folder,
                self.model,
                self.architecture,
                label_names=self.label_names,
                pretrained_cfg=pretrained_cfg,
                card=card,
                model_args=self.model_args,
            )
            return
        self.model.save_pretrained(folder)
        self.preprocessing.processor.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def load_network(
    model: str | None,
    architecture: str | None,
    revision: str | None,
    label_names: Sequence[str],
    *,
    image_size: int | None,
    head_seed: int,
    keep_head: bool,
) -> Network:
    """Load a network and give it a head.

    Args:
        model: Hub id or folder to start from, of timm or transformers; or None.
        architecture: A timm architecture to start from random weights; or None.
        revision: Of the model.
        label_names: The classes.
        image_size: Side of the input, for timm networks; None for the model's own.
        head_seed: Of the head's weights, and of all weights where nothing is loaded.
        keep_head: Keep the head that is there.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: If not exactly one of `model` and `architecture` is given, or it cannot be
            loaded, or a setting does not suit it.
    """
    if (model is None) == (architecture is None):
        raise InputError("give either --model, what to start from, or --architecture, a timm name")
    names = tuple(label_names)
    if architecture is not None:
        with _seeded(head_seed):
            built = timm.create_model(architecture, num_classes=len(names))
        return _timm(built, architecture, names, image_size, None, None, None, {})
    sha = pin(str(model), revision)
    folder = fetch(str(model), sha, CHECKPOINT_FILES)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "architecture" not in config:
        return _transformers(folder, str(model), sha, names, image_size, head_seed, keep_head)
    expert = load_expert(str(model), revision=sha, library="timm")
    if keep_head and expert.num_classes != len(names):
        raise InputError(
            f"--keep-head: {model} knows {expert.num_classes} classes, the data {len(names)}"
        )
    if not keep_head:
        network: Any = expert.model
        with _seeded(head_seed):
            network.reset_classifier(len(names))
    args = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
    name = config["architecture"]
    return _timm(expert.model, name, names, image_size, str(model), sha, expert.license, args)


def _timm(
    model: Any,
    architecture: str,
    names: tuple[str, ...],
    image_size: int | None,
    origin: str | None,
    revision: str | None,
    license: str | None,
    model_args: dict[str, Any],
) -> Network:
    changes: dict[str, Any] = {"num_classes": len(names)}
    if image_size is not None:
        changes |= {"input_size": (3, image_size, image_size), "crop_pct": 1.0}
        if any(isinstance(part, nn.MultiheadAttention) or hasattr(part, "pos_embed")
               for part in model.modules()) and origin is not None:  # fmt: skip
            raise InputError(
                f"--image-size does not suit {architecture}, whose positions are learned for one "
                "size: leave it out"
            )
    model.pretrained_cfg = {**model.pretrained_cfg, **changes}
    channels = model.pretrained_cfg["input_size"][0]
    preprocessing = timm_preprocessing(model.pretrained_cfg, channels)
    return Network(
        model, preprocessing, names, origin, revision, license, architecture, "timm", model_args
    )


def _transformers(
    folder: Path,
    origin: str,
    revision: str,
    names: tuple[str, ...],
    image_size: int | None,
    head_seed: int,
    keep_head: bool,
) -> Network:
    from transformers import AutoModelForImageClassification

    if image_size is not None:
        raise InputError("--image-size is for timm networks: change the image processor's size")
    with _seeded(head_seed):
        try:
            model = AutoModelForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=not keep_head,
                id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"transformers cannot load {origin}: {reason}") from error
        if not keep_head:
            _reset_head(model)
    preprocessing = transformers_preprocessing(folder, origin, model.config.num_channels)
    kind = model.config.model_type
    return Network(model, preprocessing, names, origin, revision, None, kind, "transformers", {})


def _reset_head(model: Any) -> None:
    """Draw the classifier anew, also where the checkpoint's had as many classes."""
    heads = [part for name, part in model.named_modules() if name.startswith("classifier")]
    for part in heads:
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class _seeded:
    """torch's random state, seeded for a while."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.fork = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *stopped: Any) -> None:
        self.fork.__exit__(*stopped)

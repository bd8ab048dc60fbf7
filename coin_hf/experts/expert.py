"""Load and check experts: fine-tuned networks from the Hub, a folder or memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts import timm_models, transformers_models
from coin_hf.experts.adapter_base import Base, base_of
from coin_hf.experts.adapter_config import is_adapter
from coin_hf.experts.adapters import build_adapter
from coin_hf.experts.checkpoint import Built, check_weights, license_of, read_config
from coin_hf.experts.in_memory import describe_module
from coin_hf.experts.merged_config import nested
from coin_hf.experts.text_preprocessing import AnyPreprocessing, TextPreprocessing
from coin_hf.experts.transformers_models import Task
from coin_hf.hub.client import fetch, pin
from coin_hf.hub.layout import CHECKPOINT_FILES, PROCESSOR
from coin_hf.recipe.blocks import Library
from coin_hf.records.coin import ClassOrder


@dataclass(frozen=True, eq=False)
class Expert:
    """One network, expert or coded model, with its origin and preprocessing."""

    name: str
    repo: str
    """Hub id or folder, as given."""
    revision: str
    """Commit SHA on the Hub, or `sha256:...` of the folder."""
    library: Literal["timm", "transformers", "torch"]
    """Library that loads and saves it; `torch` for a plain module."""
    config: dict[str, Any]
    """The content of its config.json; empty for transformers and plain modules from memory."""
    architecture: dict[str, Any]
    """The settings that, with the weights, determine the network's function."""
    model: nn.Module
    num_classes: int
    preprocessing: AnyPreprocessing
    label_names: tuple[str, ...] | None
    """The class name of each row of its logits."""
    license: str | None
    """Licence its card declares, if any."""
    class_order: ClassOrder | None = None
    """The rows of its own classes, where they are not those of its own head."""
    labels: tuple[str, ...] | None = None
    """The names of its own classes in its own order, where its rows are placed among others'."""

    base: Base | None = None
    """What it was merged into, if it is an adapter."""

    @property
    def task(self) -> Task:
        """What it classifies: images or texts."""
        text = isinstance(self.preprocessing, TextPreprocessing)
        return "text-classification" if text else "image-classification"

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Its parameters by name, detached, sharing memory with the network."""
        return {name: value.detach() for name, value in self.model.named_parameters()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Its persistent buffers by name (BatchNorm statistics), sharing the network's memory."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if name not in parameters}

    @property
    def tied(self) -> dict[str, str]:
        """Tied parameters that the files store twice, by name, with the name they are tied to.

        transformers stores such a tensor once.
        """
        if self.library == "transformers":
            return {}
        first = {id(value): name for name, value in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {name: first[id(value)] for name, value in every if first[id(value)] != name}

    @property
    def own_names(self) -> tuple[str, ...] | None:
        """The names of its classes in its own order, that of its answers in an ensemble."""
        return self.label_names if self.class_order is None else self.labels

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        *,
        name: str,
        label_names: tuple[str, ...] | list[str] | None = None,
        processor: Any = None,
        preprocessing: Callable[[Image], Tensor] | None = None,
        num_classes: int | None = None,
        model_args: Mapping[str, Any] | None = None,
    ) -> "Expert":
        """Wrap a network that is in memory.

        Args:
            model: A classifier from timm (`pretrained_cfg` gives its preprocessing) or
                transformers, or any module that returns logits (B, K).
            name: Its short name.
            label_names: K class names; by default those its library records.
            processor: A transformers network's image processor or tokenizer.
            preprocessing: Image -> input tensor (C, H, W), for a plain module.
            num_classes: K, for a plain module.
            model_args: Arguments of `timm.create_model` that the network was built with, besides
                the architecture and `num_classes`.

        Returns:
            The expert; it holds the module itself, switched to eval mode.

        Raises:
            InputError: If K is unknown, there are not K names, or a value is not finite.
        """
        named = None if label_names is None else tuple(label_names)
        library, built, config = describe_module(
            model, name, named, processor, preprocessing, num_classes, model_args
        )
        if named is not None and len(named) != built.num_classes:
            raise InputError(
                f"expert '{name}' has {built.num_classes} classes, but got {len(named)} names"
            )
        return cls._of(built, name, "", "", library, config, None, named)

    @classmethod
    def _of(
        cls,
        built: Built,
        name: str,
        repo: str,
        revision: str,
        library: Literal["timm", "transformers", "torch"],
        config: dict[str, Any],
        license_name: str | None,
        label_names: tuple[str, ...] | None = None,
    ) -> "Expert":
        """Check that the weights are finite, and switch the network to eval mode."""
        for key, value in built.model.state_dict().items():
            if not (value.is_floating_point() and value.numel()):
                continue
            if not all(end.isfinite() for end in value.aminmax()):  # both are NaN where one is
                raise InputError(
                    f"expert '{name}' has a value that is not finite in '{key}': "
                    "use a checkpoint from before its training diverged"
                )
        built.model.eval()
        return cls(
            name=name,
            repo=repo,
            revision=revision,
            library=library,
            config=config,
            architecture=built.architecture,
            model=built.model,
            num_classes=built.num_classes,
            preprocessing=built.preprocessing,
            label_names=label_names or built.label_names,
            license=license_name,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the network in its library's format: config.json and safetensors.

        Args:
            folder: Output folder, created if needed. Files of these names are replaced.

        Raises:
            InputError: If the network is a plain module.
        """
        folder = Path(folder)
        if self.library == "torch":
            raise InputError(
                f"'{self.name}' is a plain module, which no library reads back: save its "
                "`state_dict()` with safetensors, or make it a network of timm or transformers"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if self.library == "timm":
            timm_models.write_timm(folder, self.model, self.config)
            return
        model: Any = self.model
        model.save_pretrained(folder)
        if self.preprocessing.processor is not None:
            self.preprocessing.processor.save_pretrained(folder)


def load_expert(
    repo_or_path: str,
    *,
    revision: str | None = None,
    library: Library = "auto",
    device: torch.device | str | None = None,
    name: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
) -> Expert:
    """Load one expert.

    Args:
        repo_or_path: Hub id, or folder, of a timm checkpoint (`config.json` with `architecture`
            and `model.safetensors`), of a transformers classifier of images or of texts, or of a
            PEFT adapter of one (`adapter_config.json` and `adapter_model.safetensors`), merged.
        revision: Branch, tag or commit; None for the newest. It is resolved to a commit.
        library: Library that builds it; `auto` infers it from `config.json`.
        device: Device of the network; by default the CPU.
        name: Its short name in messages; by default the last part of `repo_or_path`.
        base: Hub id or folder of an adapter's base; by default the one that the adapter names.
        base_revision: The base's branch, tag or commit, or `sha256:...` of the folder.

    Returns:
        The expert, in eval mode.

    Raises:
        InputError: If the repository or revision does not exist or cannot be reached, holds no
            safetensors, is damaged, does not match its architecture, or has a value that is not
            finite.
    """
    name = name or Path(repo_or_path).name
    sha = pin(repo_or_path, revision)
    folder = fetch(repo_or_path, sha, CHECKPOINT_FILES)
    if is_adapter(folder):
        found = base_of(folder, repo_or_path, name, base, base_revision)
        expert = _merged(folder, found, repo=repo_or_path, revision=sha, name=name)
        return expert if device is None else replace(expert, model=expert.model.to(device))
    if base is not None or base_revision is not None:
        raise InputError(
            f"expert '{name}' has a `base`, but is no adapter: it holds no adapter_config.json "
            "without a model.safetensors; leave `base` out"
        )
    return read_expert(
        folder, repo=repo_or_path, revision=sha, library=library, device=device, name=name
    )


def read_expert(
    folder: Path,
    *,
    repo: str,
    revision: str,
    library: Library,
    device: torch.device | str | None,
    name: str,
) -> Expert:
    """Load an expert from a local folder whose revision is known or irrelevant.

    Args:
        folder: The checkpoint.
        repo: Hub id or folder it came from.
        revision: Its revision.
        library: Library that builds it; `auto` infers it from `config.json`.
        device: Device of the network; by default the CPU.
        name: Its short name.

    Returns:
        The expert, in eval mode.

    Raises:
        InputError: As `load_expert`.
    """
    config = nested(read_config(folder, name))
    if library == "auto" or ("architecture" in config and not (folder / PROCESSOR).is_file()):
        # transformers' wrapper of timm's networks feeds them by timm's own transform
        library = "timm" if "architecture" in config else "transformers"
    bounds = check_weights(folder, name)
    build = timm_models.build_timm if library == "timm" else transformers_models.build_transformers
    with torch.random.fork_rng(devices=[]), bounds:  # building draws random initial weights
        built = build(folder, config, name)
    expert = Expert._of(built, name, repo, revision, library, config, license_of(folder))
    expert.model.requires_grad_(False)
    if device is not None:
        expert.model.to(device)
    return expert


def _merged(folder: Path, base: Base, *, repo: str, revision: str, name: str) -> Expert:
    """Load an adapter, merged into its pinned base."""
    place = fetch(base.model, base.revision, CHECKPOINT_FILES)
    built = build_adapter(folder, place, name)
    mine, theirs = license_of(folder), license_of(place)
    common = mine if theirs in (None, mine) else None  # of one made of both
    expert = Expert._of(built, name, repo, revision, "transformers", {}, common)
    return replace(expert, base=base)

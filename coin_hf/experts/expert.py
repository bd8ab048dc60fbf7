"""Experts: fine-tuned networks from the Hub, a folder or memory, checked, in eval mode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts import timm_models, transformers_models
from coin_hf.experts.checkpoint import (
    Built,
    check_weights,
    function_of,
    known_channels,
    license_of,
    read_config,
)
from coin_hf.experts.merged_config import names_in, timm_config
from coin_hf.experts.preprocessing import Preprocessing, processor_preprocessing
from coin_hf.hub.client import fetch, pin
from coin_hf.hub.layout import CHECKPOINT_FILES
from coin_hf.recipe.blocks import Library


@dataclass(frozen=True, eq=False)
class Expert:
    """One uncoded network with its origin and its preprocessing."""

    name: str
    repo: str
    """Hub id or folder, as given."""
    revision: str
    """Commit SHA on the Hub, or `sha256:...` of the folder."""
    library: Literal["timm", "transformers", "torch"]
    """Which library reads and writes it; `torch` for a module of no library."""
    config: dict[str, Any]
    """The content of its config.json; empty for transformers' and plain modules in memory."""
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
        """Take a network that is in memory already.

        Args:
            model: A classifier: of timm (`pretrained_cfg` gives its preprocessing), of
                transformers, or any module that returns logits (B, K).
            name: Its short name.
            label_names: Its classes' names, K of them; by default those its library knows.
            processor: A transformers network's image processor.
            preprocessing: Image -> input tensor (C, H, W), for a module of no library.
            num_classes: K, for a module of no library.
            model_args: Arguments of `timm.create_model` beside the architecture's name and
                `num_classes`, without which timm would build another network.

        Returns:
            The expert; it holds the module itself, put in eval mode.

        Raises:
            InputError: If K is not known, or there are not K names.
        """
        config: dict[str, Any] = {}
        library: Literal["timm", "transformers", "torch"] = "torch"
        named = None if label_names is None else tuple(label_names)
        any_model: Any = model
        if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
            library, built = "timm", _timm_module(any_model, named, dict(model_args or {}), name)
            given = {"architecture": built.architecture["architecture"]}
            given |= {"model_args": dict(model_args)} if model_args else {}
            given |= {"pretrained_cfg": _plain(any_model.pretrained_cfg)}
            config = timm_config(given, built.num_classes, built.label_names)
        elif hasattr(model, "config") and hasattr(model.config, "id2label"):
            channels = known_channels(int(getattr(any_model.config, "num_channels", 3)), name)
            prepare = processor_preprocessing(processor, channels)
            library, built = "transformers", transformers_models.described(any_model, prepare)
        elif num_classes is None:
            raise InputError(f"expert '{name}' is of no library: say its `num_classes`")
        else:
            transform = Preprocessing({}, 3, preprocessing or _no_preprocessing)
            built = Built(model, {"module": type(model).__name__}, num_classes, transform, named)
        if named is not None and len(named) != built.num_classes:
            raise InputError(
                f"expert '{name}' has {built.num_classes} classes, but {len(named)} names came"
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
        """Check the weights, and put the network in eval mode."""
        for key, value in built.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
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
        """Write the network as its own library reads it: config.json and safetensors.

        Args:
            folder: Where to; made if it is not there. Files of these names are replaced.

        Raises:
            InputError: If the network is of no library.
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
    """Load an expert from a folder whose revision is known already, or does not matter.

    Args:
        folder: The checkpoint.
        repo: Hub id or folder that it came from.
        revision: Its revision.
        library: Which library builds it; `auto` reads it from `config.json`.
        device: Where the network goes; by default it stays on the CPU.
        name: Its short name.

    Returns:
        The expert, in eval mode.

    Raises:
        InputError: As `load_expert`.
    """
    config = read_config(folder, name)
    if library == "auto":
        library = "timm" if "architecture" in config else "transformers"
    check_weights(folder, name)
    build = timm_models.build_timm if library == "timm" else transformers_models.build_transformers
    with torch.random.fork_rng(devices=[]):  # a network is built with random weights first
        built = build(folder, config, name)
    expert = Expert._of(built, name, repo, revision, library, config, license_of(folder))
    expert.model.requires_grad_(False)
    if device is not None:
        expert.model.to(device)
    return expert


def _timm_module(
    model: Any, names: tuple[str, ...] | None, model_args: dict[str, Any], name: str
) -> Built:
    architecture = model.pretrained_cfg.get("architecture")
    if not architecture:
        raise InputError(
            f"expert '{name}': its pretrained_cfg names no architecture: build it with "
            "`timm.create_model`"
        )
    cfg = _plain(model.pretrained_cfg)
    known = names_in({**cfg, "label_names": cfg.get("label_names")}, "timm", model.num_classes)
    function = {"architecture": architecture, **function_of(model_args)}
    return timm_models.described(model, function, names or known, name)


def _plain(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a `pretrained_cfg` what JSON can hold and config.json needs."""
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in cfg.items()}
    return {k: v for k, v in kept.items() if v is not None and k != "architecture"}


def _no_preprocessing(image: Image) -> Tensor:
    raise InputError("this network is a plain module without preprocessing: give input tensors")

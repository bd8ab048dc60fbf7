"""Describe networks that are in memory, as their libraries would describe them from files."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from PIL.Image import Image
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts import timm_models, transformers_models
from coin_hf.experts.checkpoint import Built, function_of, known_channels
from coin_hf.experts.merged_config import names_in, timm_config
from coin_hf.experts.preprocessing import Preprocessing, processor_preprocessing

Library = Literal["timm", "transformers", "torch"]


def describe_module(
    model: nn.Module,
    name: str,
    named: tuple[str, ...] | None,
    processor: Any,
    preprocessing: Callable[[Image], Tensor] | None,
    num_classes: int | None,
    model_args: Mapping[str, Any] | None,
) -> tuple[Library, Built, dict[str, Any]]:
    """Describe a network by its library's own attributes.

    Args:
        model: A classifier of timm or transformers, or any module that returns logits (B, K).
        name: Its name, for messages.
        named: Its class names, if given.
        processor: A transformers network's image processor or tokenizer.
        preprocessing: Image -> input tensor (C, H, W), for a plain module.
        num_classes: K, for a plain module.
        model_args: Arguments of `timm.create_model` that the network was built with.

    Returns:
        Its library, the network described, and the content of its config.json; empty for
        transformers and plain modules.

    Raises:
        InputError: If K is unknown, or the network is not usable.
    """
    any_model: Any = model
    if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        built = _timm_module(any_model, named, dict(model_args or {}), name)
        given = {"architecture": built.architecture["architecture"]}
        given |= {"model_args": dict(model_args)} if model_args else {}
        given |= {"pretrained_cfg": _plain(any_model.pretrained_cfg)}
        return "timm", built, timm_config(given, built.num_classes, built.label_names)
    if hasattr(model, "config") and hasattr(model.config, "id2label"):
        config = {**any_model.config.to_dict(), "architectures": [type(model).__name__]}
        if transformers_models.task_of(config) == "text-classification":
            built = transformers_models.described_text(any_model, processor, name)
            return "transformers", built, {}
        channels = known_channels(int(getattr(any_model.config, "num_channels", 3)), name)
        prepare = processor_preprocessing(processor, channels)
        return "transformers", transformers_models.described(any_model, prepare), {}
    if num_classes is None:
        raise InputError(f"expert '{name}' is a plain module: give its `num_classes`")
    transform = Preprocessing({}, 3, preprocessing or _no_preprocessing)
    built = Built(model, {"module": type(model).__name__}, num_classes, transform, named)
    return "torch", built, {}


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
    """Keep the entries of a `pretrained_cfg` that config.json needs, as JSON values."""
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in cfg.items()}
    return {k: v for k, v in kept.items() if v is not None and k != "architecture"}


def _no_preprocessing(image: Image) -> Tensor:
    raise InputError("this network is a plain module without preprocessing: give input tensors")

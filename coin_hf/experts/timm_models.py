"""Build timm networks from config.json and model.safetensors, and save them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from timm.models._hub import load_model_config_from_path
from torch import Tensor, nn

from coin_hf.errors import InputError, boundary, shown
from coin_hf.experts.checkpoint import (
    Built,
    differences,
    function_of,
    known_channels,
    listed,
    without_prefix,
)
from coin_hf.experts.merged_config import names_in
from coin_hf.experts.preprocessing import timm_preprocessing
from coin_hf.networks.building import Unfilled

ARGUMENTS = {
    "act_layer", "always_partition", "aa_layer", "attn_drop_rate", "attn_layer", "attn_pool",
    "avg_down", "base_width", "block_args", "bottle_ratio", "cardinality", "channels",
    "class_token", "conv_bias", "conv_mlp", "depth", "depths", "dims", "distilled",
    "drop_block_rate", "drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size",
    "embed_dim", "embed_dims", "expand_ratio", "final_norm", "fc_norm", "global_pool", "groups",
    "growth_rate", "head_bias", "head_conv_bias", "head_dim", "head_hidden_size",
    "head_init_scale", "head_norm", "head_norm_first", "img_size", "in_chans", "init_values",
    "kernel_size", "kernel_sizes", "layer_scale", "layer_scale_init_value", "layers",
    "ls_init_value", "mlp_ratio", "mlp_ratios", "no_embed_class", "norm_eps", "norm_layer",
    "num_blocks", "num_classes", "num_features", "num_heads", "num_reg_tokens",
    "output_stride", "pad_type", "patch_drop_rate", "patch_norm", "patch_size", "pool_size",
    "pos_drop_rate", "pos_embed", "pre_norm", "pretrained_window_sizes", "proj_bias",
    "proj_drop_rate", "qk_norm", "qkv_bias", "reduction", "reg_tokens", "rel_pos_type",
    "rope_temperature", "rope_type", "round_limit", "se_layer", "sep_pos_embed", "sr_ratios",
    "stem_chs", "stem_kernel_size", "stem_size", "stem_stride", "stem_type", "stem_width",
    "strict_img_size", "use_abs_pos", "use_abs_pos_emb", "use_fc_norm", "use_grn", "use_rel_pos",
    "use_rel_pos_bias", "use_rot_pos_emb", "use_shared_rel_pos_bias", "width", "widths",
    "window_ratio", "window_size",
}  # fmt: skip
"""Arguments of timm's networks that config.json may give: what changes the network. Others of
`timm.create_model` read files, download, or change what is returned."""
LARGEST_NUMBER = 1 << 24
"""Largest number among these arguments: no width, depth or image size is larger."""
OBJECTS = ("model_args", "pretrained_cfg")
"""Keys of config.json that hold objects."""


def build_timm(folder: Path, config: dict[str, Any], name: str) -> Built:
    """Build a timm network and load its weights.

    Args:
        folder: The checkpoint.
        config: The content of its config.json.
        name: The expert's name, for messages.

    Returns:
        The network.

    Raises:
        InputError: If timm cannot build it, or the weights do not fit.
    """
    check_config(config, name)
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"expert '{name}' has no model.safetensors, as timm names its weights")
    with boundary(
        f"expert '{name}': timm {timm.__version__} cannot build '{config['architecture']}'",
        "check config.json, or install a newer timm",
    ):
        pretrained_cfg, architecture, model_args = _timms_own_reading(config)
        model_args.pop("num_classes", None)  # given once, beside `architecture`
        for key in ("file", "source"):  # where it lies is no part of what it is
            pretrained_cfg.pop(key, None)
        with Unfilled():  # `_fit` sees to it that every parameter is loaded
            model: Any = timm.create_model(
                architecture, pretrained=False, pretrained_cfg=pretrained_cfg, **model_args
            )
    with boundary(f"expert '{name}': model.safetensors cannot be read", "download it again"):
        state = load_file(folder / "model.safetensors")
    if dtypes := {value.dtype for value in state.values() if value.dtype.is_floating_point}:
        model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
    _fit(model, without_prefix(state, model.state_dict(), name), name)
    function = {"architecture": architecture, **function_of(model_args)}
    return described(model, function, names_in(config, "timm", int(model.num_classes)), name)


def check_config(config: dict[str, Any], name: str) -> None:
    """Refuse a config.json that sets more than a network of timm's registry.

    Args:
        config: Its content.
        name: The expert's name, for messages.

    Raises:
        InputError: If its architecture is none of timm's, or an argument may not be set.
    """
    for key in OBJECTS:
        _check_object(config, key, name)
    if not isinstance(config.get("architecture"), str):
        raise InputError(
            f"expert '{name}': config.json names no timm `architecture`, such as 'resnet50' "
            f"(got {shown(config.get('architecture'))}): save it with timm's `save_for_hf`, or set "
            "`library`"
        )
    _check_architecture(config["architecture"], name)
    _check_arguments(config.get("model_args") or {}, name)


def described(
    model: Any, function: dict[str, Any], names: tuple[str, ...] | None, name: str
) -> Built:
    """Describe a timm network.

    Args:
        model: The network, with its `pretrained_cfg`.
        function: Architecture and arguments it was built with.
        names: Its class names.
        name: The expert's name, for messages.

    Returns:
        The network, described.

    Raises:
        InputError: If its images have neither 1 nor 3 channels.
    """
    channels = function.get("in_chans") or model.pretrained_cfg["input_size"][0]
    with boundary(
        f"expert '{name}': timm cannot make its preprocessing", "check its pretrained_cfg"
    ):
        preprocessing = timm_preprocessing(model.pretrained_cfg, known_channels(channels, name))
    return Built(model, function, int(model.num_classes), preprocessing, names)


def write_timm(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write config.json and model.safetensors as timm reads them.

    Args:
        folder: Output folder, which exists.
        model: The network.
        config: The content of config.json.
    """
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    state, seen = {}, set[int]()
    for name, value in model.state_dict().items():
        # timm expects tied weights under every name; what shares memory would be written once.
        tied = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        state[name] = value.clone() if tied else value
    whole = sum(value.nbytes for value in state.values())  # timm reads no shards
    save_torch_state_dict(state, folder, max_shard_size=max(whole, 1))


def _timms_own_reading(config: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return pretrained_cfg, architecture and model_args as timm reads them from a folder.

    transformers writes null for objects it has nothing to say in, on which timm fails.
    """
    filled = {key: {} if key in OBJECTS and value is None else value
              for key, value in config.items()}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(filled), encoding="utf-8")
        read: tuple[dict[str, Any], str, dict[str, Any]] = load_model_config_from_path(folder)
    return read


def _check_object(config: dict[str, Any], key: str, name: str) -> None:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(
            f"expert '{name}': `{key}` in config.json must be an object, got {shown(value)}"
        )


def _check_architecture(architecture: str, name: str) -> None:
    """Refuse what timm's registry does not hold: names of folders or of repositories."""
    plain, _ = timm.models.split_model_name_tag(architecture)
    if not architecture.isprintable() or not timm.is_model(plain):
        raise InputError(
            f"expert '{name}': timm {timm.__version__} has no architecture {shown(architecture)}: "
            "check config.json, or install a newer timm"
        )


def _check_arguments(arguments: dict[str, Any], name: str) -> None:
    """Refuse arguments of timm's networks that do more than change the network."""
    unknown = sorted(arguments.keys() - ARGUMENTS)
    if unknown:
        raise InputError(
            f"expert '{name}': `model_args` in config.json gives {listed([*map(repr, unknown)])}, "
            "which a repository may not set: take them out, or build the network yourself for "
            "`Expert.from_module`"
        )
    level = list(arguments.values())
    while level:
        wrong = [v for v in level if isinstance(v, int | float) and not abs(v) <= LARGEST_NUMBER]
        if wrong:
            raise InputError(
                f"expert '{name}': `model_args` in config.json holds the number {wrong[0]:.3g}, "
                f"above {LARGEST_NUMBER:,}: correct it"
            )
        inner = [v for v in level if isinstance(v, dict | list)]
        level = [v for each in inner for v in (each.values() if isinstance(each, dict) else each)]


def _fit(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load weights, or list every name and shape that does not fit."""
    faults = differences(state, model.state_dict())
    if faults:
        raise InputError(f"expert '{name}': model.safetensors does not fit config.json: {faults}")
    model.load_state_dict(state)

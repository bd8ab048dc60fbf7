"""Read a PEFT adapter's configuration by an allow-list: a repository is a stranger's data."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from coin_hf.errors import InputError, boundary, shown
from coin_hf.hub.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from coin_hf.recipe.text_files import read_json

MERGE = "or merge it yourself with `merge_and_unload()` and save the result"
"""The way out for adapters that coin-hf does not merge."""
_PLACES = {"target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out"}
KEPT: dict[str, set[str]] = {
    "LORA": _PLACES | {
        "r", "lora_alpha", "bias", "use_rslora", "use_dora", "lora_bias", "layers_to_transform",
        "layers_pattern", "rank_pattern", "alpha_pattern",
    },
    "IA3": _PLACES | {"feedforward_modules"},
}  # fmt: skip
"""Kinds of adapter whose merge is exact linear algebra, and the keys that determine it. What else a
configuration may hold must have peft's default."""
BESIDE = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
          "revision", "inference_mode", "lora_dropout", "megatron_core", "init_lora_weights",
          "init_ia3_weights", "runtime_config"}  # fmt: skip
"""Keys that do not change what is merged. `auto_mapping` names code to import: never read."""
STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is."""
TASKS = (None, "SEQ_CLS", "FEATURE_EXTRACTION")
"""Tasks of adapters for classifiers; peft has no word for images."""
SLOW = re.compile(r"\)\s*[*+{?]|\\\d|\(\?|([*+{].*){4}")
"""Parts of regular expressions that can take for ever: quantified groups, many quantifiers."""
LONGEST_PATTERN = 1000


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter, and no checkpoint.

    Args:
        folder: The folder of an expert.

    Returns:
        Whether it has an `adapter_config.json` and no `model*.safetensors`.
    """
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def read_adapter_config(folder: Path, name: str) -> dict[str, Any]:
    """Read an adapter's configuration.

    Args:
        folder: The adapter.
        name: The expert's name, for messages.

    Returns:
        The content of its `adapter_config.json`.

    Raises:
        InputError: If it is damaged, or the adapter is of a kind that is not merged.
    """
    said = read_json(
        folder / ADAPTER_CONFIG, f"expert '{name}': {ADAPTER_CONFIG}", "download it again"
    )
    kind = said.get("peft_type")
    if not isinstance(kind, str) or kind not in KEPT:
        raise InputError(
            f"expert '{name}' is an adapter of the kind {shown(kind)}, which coin-hf does not "
            f"merge: give one of {', '.join(KEPT)}, {MERGE}"
        )
    if said.get("task_type") not in TASKS:
        raise InputError(
            f"expert '{name}' is an adapter for {shown(said.get('task_type'))}: only classifiers "
            "can be coded, of images or of texts (SEQ_CLS)"
        )
    return said


def peft_config(said: dict[str, Any], name: str) -> Any:
    """Make peft's own configuration of what an adapter's says.

    Args:
        said: The content of its `adapter_config.json`.
        name: The expert's name, for messages.

    Returns:
        A `LoraConfig` or `IA3Config`.

    Raises:
        InputError: If peft is not installed, or the adapter sets what changes the base, imports
            code, or is no configuration.
    """
    peft = import_peft(name)
    kind = peft.IA3Config if said["peft_type"] == "IA3" else peft.LoraConfig
    kept = KEPT[said["peft_type"]]
    usual = {
        field.name: field.default_factory()
        if field.default_factory is not dataclasses.MISSING
        else field.default
        for field in dataclasses.fields(kind)
    }
    odd = sorted(
        key
        for key, value in said.items()
        if key not in kept | BESIDE and value != usual.get(key) and value
    )
    if odd:
        raise InputError(
            f"expert '{name}': {ADAPTER_CONFIG} sets {', '.join(map(shown, odd[:10]))}, which "
            f"coin-hf does not merge: give an adapter without, {MERGE}"
        )
    start = said.get("init_lora_weights", True)
    if not any(start is each or (isinstance(start, str) and start == each) for each in STARTS):
        raise InputError(
            f"expert '{name}': its adapter starts from `init_lora_weights` {shown(start)}, which "
            "changes the base: save it with `path_initial_model_for_weight_conversion`, or merge "
            "it yourself with `merge_and_unload()` and save the result"
        )
    _check_patterns(said, name)
    task = "SEQ_CLS" if said.get("task_type") == "SEQ_CLS" else None
    with boundary(
        f"expert '{name}': {ADAPTER_CONFIG} is no configuration for peft {peft.__version__}",
        "save the adapter again by `save_pretrained`",
    ):
        return kind(
            task_type=task,
            inference_mode=True,
            **{key: value for key, value in said.items() if key in kept and key in usual},
        )


def import_peft(name: str) -> Any:
    """Import peft, which only adapters need.

    Args:
        name: The expert's name, for messages.

    Returns:
        The module.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"expert '{name}' is a PEFT adapter, which peft merges: install it with "
            "`pip install coin-hf[adapters]`"
        ) from error
    return peft


def adapter_file(folder: Path, name: str) -> Path:
    """Return an adapter's weights.

    Args:
        folder: The adapter.
        name: The expert's name, for messages.

    Returns:
        The file.

    Raises:
        InputError: If there is none.
    """
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise InputError(
            f"expert '{name}' is an adapter without {ADAPTER_WEIGHTS}: coin-hf reads safetensors "
            "alone, since a pickle (adapter_model.bin) can run code; save it again by peft's "
            "`save_pretrained`"
        )
    return file


def _check_patterns(said: dict[str, Any], name: str) -> None:
    """Refuse regular expressions that could take for ever on names of modules."""
    for key in ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern",
                "rank_pattern", "alpha_pattern"):  # fmt: skip
        value = said.get(key)
        for pattern in list(value) if isinstance(value, list | dict) else [value or ""]:
            if not isinstance(pattern, str):
                raise InputError(
                    f"expert '{name}': `{key}` in {ADAPTER_CONFIG} must hold text, got "
                    f"{shown(pattern)}: save the adapter again by `save_pretrained`"
                )
            if len(pattern) > LONGEST_PATTERN or SLOW.search(pattern):
                raise InputError(
                    f"expert '{name}': `{key}` in {ADAPTER_CONFIG} holds the pattern "
                    f"{shown(pattern)}, which may take for ever to match: list names of modules "
                    "instead"
                )

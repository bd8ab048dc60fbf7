"""Merge a PEFT adapter into its base: one expert, from two checkpoints, by peft itself."""

import copy
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from coin_hf.errors import InputError, boundary
from coin_hf.experts.adapter_config import (
    adapter_file,
    import_peft,
    is_adapter,
    peft_config,
    read_adapter_config,
)
from coin_hf.experts.checkpoint import (
    Built,
    check_weights,
    known_channels,
    listed,
    read_config,
)
from coin_hf.experts.merged_config import names_in
from coin_hf.experts.preprocessing import transformers_preprocessing
from coin_hf.experts.text_preprocessing import folder_tokenizer
from coin_hf.experts.timm_models import check_config
from coin_hf.experts.transformers_models import (
    check_supported,
    described,
    described_text,
    quiet,
    stored_dtype,
)
from coin_hf.hub.layout import ADAPTER_WEIGHTS, PROCESSOR, VOCABULARY_FILES
from coin_hf.networks.building import Bounded

TEXT = "SEQ_CLS"
"""peft's name for the task of classifying texts."""
PREFIX = "base_model.model."
"""What peft puts before every name in an adapter's file."""


def build_adapter(folder: Path, base: Path, name: str) -> Built:
    """Load a base and an adapter, and merge them by peft's `merge_and_unload`.

    Args:
        folder: The adapter.
        base: The base's checkpoint.
        name: The expert's name, for messages.

    Returns:
        The merged network, as peft makes it, to the bit.

    Raises:
        InputError: If peft is missing, the adapter is of a kind that is not merged, or adapter and
            base do not fit.
    """
    settings = peft_config(read_adapter_config(folder, name), name)
    file = adapter_file(folder, name)
    extra = check_weights(folder, name, ADAPTER_WEIGHTS)
    owner = f"{name} (its base)"
    config = read_config(base, owner)
    if is_adapter(base):
        raise InputError(f"the base of expert '{name}' is itself an adapter: merge that one first")
    check_supported(base, config, owner)
    if "architecture" in config:
        check_config(config, owner)
    bounds = check_weights(base, owner)
    with safe_open(file, framework="pt") as weights:
        shapes = {
            key.removeprefix(PREFIX): tuple(weights.get_slice(key).get_shape())
            for key in weights.keys()  # noqa: SIM118
        }
    auto, kind = auto_class(settings.task_type)
    with torch.random.fork_rng(devices=[]), quiet():
        told = _labelled(folder, base, config, auto, shapes, bounds, name)
        model = _load_base(base, told, auto, kind, shapes.keys(), _both(bounds, extra), name)
        merged = _merge(model, folder, settings, shapes.keys(), _both(bounds, extra), name)
    return _described(merged, folder, base, settings.task_type, name)


def auto_class(task: str | None) -> tuple[Any, str]:
    """Choose transformers' class for the base of an adapter: the one place where it is chosen.

    Args:
        task: The adapter's `task_type`.

    Returns:
        The class, and what its networks are called in messages.
    """
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    if task == TEXT:
        return AutoModelForSequenceClassification, "a text classifier"
    return AutoModelForImageClassification, "an image classifier"


def _described(model: Any, folder: Path, base: Path, task: str | None, name: str) -> Built:
    """Describe a merged network, with the preprocessing of the adapter, else of its base."""
    if task == TEXT:
        own = any((folder / file).is_file() for file in VOCABULARY_FILES)
        return described_text(model, folder_tokenizer(folder if own else base, name), name)
    place = next((f for f in (folder, base) if (f / PROCESSOR).is_file()), base)
    channels = known_channels(int(getattr(model.config, "num_channels", 3)), name)
    return described(model, transformers_preprocessing(place, name, channels))


def _labelled(
    folder: Path,
    base: Path,
    config: Mapping[str, Any],
    auto: Any,
    shapes: Mapping[str, tuple[int, ...]],
    bounds: Bounded,
    name: str,
) -> Any:
    """Return the base's configuration with the classes of the adapter's head."""
    from transformers import AutoConfig

    with boundary(
        f"the base of expert '{name}' has a config.json that transformers cannot read",
        "give the base that the adapter was trained on as `base` with the expert",
    ):
        told = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        own = int(told.num_labels)
        head = _head(told, auto, bounds)
    counts = {shapes[key][axis] for key, axis in head.items() if key in shapes}
    if len(counts) > 1:
        raise InputError(
            f"expert '{name}': the tensors of its adapter's classifier have "
            f"{' and '.join(map(str, sorted(counts)))} rows: save the adapter again"
        )
    count = counts.pop() if counts else own
    given = read_config(folder, name) if (folder / "config.json").is_file() else {}
    names = _names(given, count)
    if names is None:
        names = _names(config, count)
        if count != own or names is not None:
            what = "those of its base" if names is not None else "known by number alone"
            warnings.warn(
                f"expert '{name}' is an adapter without names for its {count} classes: they are "
                f"{what}; put a config.json with `id2label` beside the adapter to name them",
                stacklevel=2,
            )
    told.num_labels = count
    if names is not None:
        told.id2label = dict(enumerate(names))
        told.label2id = {label: number for number, label in enumerate(names)}
    return told


def _names(config: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Return the class names in a config.json, if there are as many as classes."""
    labels = config.get("id2label")
    fits = isinstance(labels, dict) and len(labels) == count
    return names_in(config, "transformers", count) if fits else None


def _head(config: Any, auto: Any, bounds: Bounded) -> dict[str, int]:
    """Find the tensors whose shape depends on the number of classes, and the axis that does."""
    found = []
    for count in (3, 4):
        tried = copy.deepcopy(config)
        tried.num_labels = count
        with torch.device("meta"), copy.copy(bounds):
            model = auto.from_config(tried)
        found.append({key: tuple(value.shape) for key, value in model.state_dict().items()})
    return {
        key: next(axis for axis, side in enumerate(shape) if side != found[1][key][axis])
        for key, shape in found[0].items()
        if found[1].get(key) != shape and math.prod(shape)
    }


def _load_base(
    base: Path,
    config: Any,
    auto: Any,
    kind: str,
    supplied: Collection[str],
    bounds: Bounded,
    name: str,
) -> Any:
    """Load the base, all but what the adapter brings itself."""
    with (
        boundary(
            f"the base of expert '{name}': transformers cannot load it as {kind}",
            "give the base that the adapter was trained on as `base` with the expert",
        ),
        bounds,
    ):
        model, loading = auto.from_pretrained(
            base,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=stored_dtype(base),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    lacking = [key for key in loading["missing_keys"] if key not in supplied]
    lacking += [key for key, *_ in loading["mismatched_keys"] if key not in supplied]
    if lacking:
        raise InputError(
            f"expert '{name}': neither its adapter nor the base holds "
            f"{listed([repr(key) for key in sorted(lacking)])}: train the adapter with "
            "`modules_to_save` for the classifier, or give a base that has it as `base`"
        )
    return model


def _merge(
    model: Any, folder: Path, settings: Any, held: Collection[str], bounds: Bounded, name: str
) -> Any:
    """Load the adapter, check that every tensor has its place, and merge."""
    peft = import_peft(name)
    with (
        boundary(
            f"expert '{name}': its adapter does not fit the base",
            "give the base that it was trained on as `base` with the expert",
        ),
        warnings.catch_warnings(),
        bounds,
    ):
        warnings.simplefilter("ignore")  # its report of missing keys is our sentence
        adapted = peft.PeftModel.from_pretrained(model, folder, config=settings, torch_device="cpu")
        wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        named = {key.removeprefix(PREFIX) for key in wanted}
        faults = [f"missing '{key}'" for key in sorted(named - set(held))]
        faults += [f"unexpected '{key}'" for key in sorted(set(held) - named)]
        if faults:
            raise InputError(
                f"expert '{name}': its adapter does not fit the base: {listed(faults, '; ')}; give "
                "the base that it was trained on as `base` with the expert"
            )
        merged = adapted.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # it is a plain network now
    return merged.requires_grad_(False)


def _both(one: Bounded, other: Bounded) -> Bounded:
    """Return bounds for a network made of two checkpoints."""
    both = copy.copy(one)
    both.parameters, both.elements = (
        one.parameters + other.parameters,
        one.elements + other.elements,
    )
    return both

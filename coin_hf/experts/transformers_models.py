"""Load transformers image classifiers with the library's own classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from coin_hf.errors import InputError, boundary
from coin_hf.experts.checkpoint import ADAPTER, Built, function_of, known_channels, listed
from coin_hf.experts.preprocessing import transformers_preprocessing

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What safetensors calls the dtypes of weights."""


def build_transformers(folder: Path, config: dict[str, Any], name: str) -> Built:
    """Load a transformers network.

    Args:
        folder: The checkpoint.
        config: The content of its config.json; transformers reads it again.
        name: The expert's name, for messages.

    Returns:
        The network.

    Raises:
        InputError: If transformers cannot load it as an image classifier, or the weights do not
            fit.
    """
    from transformers import AutoModelForImageClassification

    check_supported(folder, config, name)
    with (
        boundary(
            f"expert '{name}': transformers cannot load it as an image classifier",
            "give a checkpoint saved by `save_pretrained`, fine-tuned for image classification",
        ),
        quiet(),
    ):  # its report of what does not fit is our sentence
        model, loading = AutoModelForImageClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=stored_dtype(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    faults = [
        [f"missing '{key}'" for key in sorted(loading["missing_keys"])],
        [f"unexpected '{key}'" for key in sorted(loading["unexpected_keys"])],
        [
            f"'{key}' has shape {tuple(held)}, expected {tuple(expected)}"
            for key, held, expected in sorted(loading["mismatched_keys"])
        ],
    ]
    if any(faults):
        listing = "; ".join(listed(kind, "; ") for kind in faults if kind)
        raise InputError(
            f"expert '{name}': model.safetensors does not fit config.json: {listing}; give a "
            "checkpoint fine-tuned for image classification, its adapters merged"
        )
    channels = known_channels(int(getattr(model.config, "num_channels", 3)), name)
    preprocessing = transformers_preprocessing(folder, name, channels)
    return described(model, preprocessing)


def described(model: Any, preprocessing: Any) -> Built:
    """Describe a transformers network.

    Args:
        model: The network, with its `config`.
        preprocessing: Its preprocessing.

    Returns:
        The network, described.

    Raises:
        InputError: If `id2label` has gaps.
    """
    by_number = model.config.id2label
    lacking = [str(i) for i in range(model.config.num_labels) if i not in by_number]
    if lacking:
        raise InputError(
            f"`id2label` in config.json names {len(by_number)} classes, but not the class "
            f"{listed(lacking)}: number them from 0 without gaps"
        )
    labels = [str(by_number[i]) for i in range(model.config.num_labels)]
    generic = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    return Built(
        model,
        function_of(model.config.to_dict()),
        int(model.config.num_labels),
        preprocessing,
        None if generic else tuple(labels),
    )


def check_supported(folder: Path, config: dict[str, Any], name: str) -> None:
    """Refuse what transformers would load as another network than the file's.

    Args:
        folder: The checkpoint.
        config: The content of its config.json.
        name: The expert's name, for messages.

    Raises:
        InputError: If it is quantised, or holds an adapter beside the network.
    """
    if config.get("quantization_config"):
        raise InputError(
            f"expert '{name}' is quantised: its weights are rounded codes, which cannot be "
            "averaged; give the checkpoint from before quantisation"
        )
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"expert '{name}' holds a base model and {ADAPTER}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loader's log.

    Yields:
        Nothing.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the floating dtype of the weights, the widest where they differ.

    transformers would round them to the `dtype` of config.json.

    Args:
        folder: The checkpoint.

    Returns:
        The dtype; float32 where no weight is floating.
    """
    found = []
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            found += [
                FLOATING[kind]
                for key in weights.keys()  # noqa: SIM118
                if (kind := weights.get_slice(key).get_dtype()) in FLOATING
            ]
    return reduce(torch.promote_types, found) if found else torch.float32

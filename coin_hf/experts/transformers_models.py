"""Load transformers' classifiers of images and of texts with the library's own classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from coin_hf.errors import InputError, boundary
from coin_hf.experts.checkpoint import ADAPTER, Built, function_of, known_channels, listed
from coin_hf.experts.preprocessing import transformers_preprocessing
from coin_hf.experts.text_preprocessing import folder_tokenizer, tokenizer_preprocessing

Task = Literal["image-classification", "text-classification"]
"""What an expert classifies, in the words of the Hub and of transformers' pipelines."""
ENDINGS: dict[str, Task] = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
}
"""How the classes of classifiers end, in the `architectures` of config.json."""
WORDS = {"image-classification": "image", "text-classification": "text"}
STALE = (".attn.masked_bias",)
"""Endings of constants that earlier versions stored beside the parameters (GPT-2)."""

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
        InputError: If transformers cannot load it as a classifier, or the weights do not fit.
    """
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    check_supported(folder, config, name)
    task = task_of(config)
    kind, auto = "an image", AutoModelForImageClassification
    if task == "text-classification":
        kind, auto = "a text", AutoModelForSequenceClassification
    tuned = f"fine-tuned for {WORDS[task]} classification"
    with (
        boundary(
            f"expert '{name}': transformers cannot load it as {kind} classifier",
            f"give a checkpoint saved by `save_pretrained`, {tuned}",
        ),
        quiet(),
    ):  # its report of what does not fit is our sentence
        model, loading = auto.from_pretrained(
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
        [
            f"unexpected '{key}'"
            for key in sorted(loading["unexpected_keys"])
            if not key.endswith(STALE)
        ],
        [
            f"'{key}' has shape {tuple(held)}, expected {tuple(expected)}"
            for key, held, expected in sorted(loading["mismatched_keys"])
        ],
    ]
    if any(faults):
        listing = "; ".join(listed(kind, "; ") for kind in faults if kind)
        raise InputError(
            f"expert '{name}': model.safetensors does not fit config.json: {listing}; give a "
            f"checkpoint {tuned}, its adapters merged"
        )
    if task == "text-classification":
        return described_text(model, folder_tokenizer(folder, name), name)
    channels = known_channels(int(getattr(model.config, "num_channels", 3)), name)
    preprocessing = transformers_preprocessing(folder, name, channels)
    return described(model, preprocessing)


def task_of(config: dict[str, Any]) -> Task:
    """Say what a network classifies.

    Args:
        config: The content of its config.json.

    Returns:
        What its class is for; where that is no classifier, what its type of network supports.
    """
    from transformers.models.auto import modeling_auto

    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        for ending, task in ENDINGS.items():
            if isinstance(name, str) and name.endswith(ending):
                return task
    kind = config.get("model_type")
    images = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    texts = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    only_texts = isinstance(kind, str) and kind in texts and kind not in images
    return "text-classification" if only_texts else "image-classification"


def described_text(model: Any, tokenizer: Any, name: str) -> Built:
    """Describe a transformers text classifier.

    Args:
        model: The network, with its `config`.
        tokenizer: Its tokenizer; None if it has none.
        name: The expert's name, for messages.

    Returns:
        The network, described.

    Raises:
        InputError: If it has a single logit, or its tokenizer is not usable.
    """
    if model.config.num_labels == 1:
        raise InputError(
            f"expert '{name}' has a single logit, as for regression, and no classes to decode: "
            "give a classifier of two classes or more"
        )
    return described(model, tokenizer_preprocessing(tokenizer, model, name))


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

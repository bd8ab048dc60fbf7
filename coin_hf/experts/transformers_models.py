"""Load transformers image classifiers with the library's own classes."""

from pathlib import Path
from typing import Any

from coin_hf.errors import InputError
from coin_hf.experts.checkpoint import Built, function_of, known_channels
from coin_hf.experts.preprocessing import transformers_preprocessing


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

    try:
        model, loading = AutoModelForImageClassification.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
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
    """
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    generic = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    return Built(
        model,
        function_of(model.config.to_dict()),
        int(model.config.num_labels),
        preprocessing,
        None if generic else tuple(labels),
    )

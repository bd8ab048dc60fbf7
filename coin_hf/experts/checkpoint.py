"""Read and check a checkpoint's folder before a library builds its network."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import RepoCard
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from coin_hf.errors import InputError
from coin_hf.experts.text_preprocessing import AnyPreprocessing
from coin_hf.hub.layout import CARD_FILE
from coin_hf.networks.building import Bounded
from coin_hf.recipe.text_files import read_json, read_text

ADAPTER = "a PEFT adapter: merge it with `merge_and_unload()` and save the result"
OTHERS = {
    "adapter_config.json": ADAPTER,
    "adapter_model.safetensors": ADAPTER,
    "open_clip_config.json": "an OpenCLIP model: fine-tune a classifier from it with timm",
    ".onnx": "an ONNX export: give the checkpoint that it was exported from",
    ".h5": "TensorFlow weights: give the PyTorch checkpoint, saved by `save_pretrained`",
    ".msgpack": "Flax weights: give the PyTorch checkpoint, saved by `save_pretrained`",
    ".gguf": "quantised GGUF weights, which cannot be averaged: give the checkpoint before it",
    ".ckpt": "a training framework's checkpoint: load it there, and save the network alone",
    ".tar": "a training framework's checkpoint: load it there, and save the network alone",
}
"""What a folder without safetensors may hold, by file name or suffix, and the way out."""
PICKLES = (".bin", ".pt", ".pth")
LARGEST_CARD = 1 << 20
"""Bytes of the largest card whose licence is read."""
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that git left in place of a large one."""


@dataclass(frozen=True, eq=False)
class Built:
    """A network and its library's description of it."""

    model: nn.Module
    architecture: dict[str, Any]
    """The settings that, with the weights, determine the network's function."""
    num_classes: int
    preprocessing: AnyPreprocessing
    label_names: tuple[str, ...] | None


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read an expert's config.json.

    Args:
        folder: The checkpoint.
        name: The expert's name, for messages.

    Returns:
        Its content.

    Raises:
        InputError: If there is none, or it is not a JSON object.
    """
    what, way_out = f"expert '{name}': config.json", "download it again"
    try:
        return read_json(folder / "config.json", what, way_out)
    except FileNotFoundError as error:
        held = _other(folder) or "no config.json: give a timm or transformers checkpoint"
        raise InputError(f"expert '{name}' holds {held}") from error


def check_weights(folder: Path, name: str, pattern: str = "model*.safetensors") -> Bounded:
    """Refuse a folder without readable safetensors, before any library opens it.

    Args:
        folder: The checkpoint.
        name: The expert's name, for messages.
        pattern: Which of its files hold the weights.

    Returns:
        Bounds for the network that these weights are loaded into.

    Raises:
        InputError: If it holds no safetensors, or one is damaged.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        if other := _other(folder):
            raise InputError(f"expert '{name}' holds no safetensors, but {other}")
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        held = f"only pickles ({', '.join(pickles)})" if pickles else "no model.safetensors"
        raise InputError(
            f"expert '{name}' holds {held}: coin-hf reads safetensors alone, since a pickle can "
            "run code; convert it at https://huggingface.co/spaces/safetensors/convert or with "
            "safetensors.torch.save_file(torch.load(..., weights_only=True), 'model.safetensors')"
        )
    shapes: list[list[int]] = []
    for file in files:
        if not file.is_file():
            raise InputError(
                f"expert '{name}': {file.name} is no file, or a link to none: put the weights there"
            )
        try:
            with safe_open(file, framework="pt") as weights:
                shapes += [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            with file.open("rb") as stream:
                pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
            raise InputError(
                f"expert '{name}': {file.name} is a Git LFS pointer, not the weights: run "
                "`git lfs pull` in its repository"
                if pointer
                else f"expert '{name}': {file.name} is damaged or cut short ({error}): "
                "download or save it again"
            ) from error
    return Bounded(parameters=len(shapes), elements=sum(map(math.prod, shapes)))


def _other(folder: Path) -> str | None:
    """Say what a folder holds in place of a checkpoint, if it is something known."""
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return next((what for kind, what in OTHERS.items() for f in files if f.endswith(kind)), None)


def license_of(folder: Path) -> str | None:
    """Return the licence that a checkpoint's card declares.

    Args:
        folder: The checkpoint.

    Returns:
        The licence; None if there is no card or it declares none.
    """
    try:
        text = read_text(folder / CARD_FILE, "the card", "", largest=LARGEST_CARD)
        data = RepoCard(text, ignore_metadata_errors=True).data
        declared = ModelCardData(**data.to_dict(), ignore_metadata_errors=True).license
    except Exception:
        return None  # a card that the Hub's own reader cannot read declares nothing
    return declared if isinstance(declared, str) else None


def function_of(config: dict[str, Any]) -> dict[str, Any]:
    """Keep the settings that affect the network's function in eval mode.

    Args:
        config: A network's settings, from its library.

    Returns:
        The settings that determine its output.
    """
    beside = ("label", "_name_or_path", "transformers_version", "dtype", "architectures", "drop")
    return {
        key: value
        for key, value in config.items()
        if not any(part in key for part in beside) and key != "problem_type"
    }


def known_channels(channels: int, name: str) -> int:
    """Check the number of channels of a network's input images.

    Args:
        channels: The number.
        name: The expert's name, for messages.

    Returns:
        The same number.

    Raises:
        InputError: If it is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise InputError(
            f"expert '{name}' takes images of {channels} channels: only 1 and 3 are supported"
        )
    return channels


PREFIXES = ("_orig_mod.", "module.", "model.", "timm_model.")
"""What `torch.compile`, DistributedDataParallel, training frameworks and transformers' wrapper of
timm's networks put before every name."""
SHOWN = 10
"""Names listed in a message."""


def without_prefix(
    state: Mapping[str, Tensor], expected: Collection[str], name: str
) -> dict[str, Tensor]:
    """Strip a prefix that all names have and none should have, with a warning.

    Args:
        state: The weights by the names of the file.
        expected: The names of the network.
        name: The expert's name, for messages.

    Returns:
        The weights by the names of the network, where stripping known prefixes gives those;
        else as they are.
    """
    stripped, prefix = dict(state), ""
    while stripped and not stripped.keys() & set(expected):
        found = next((p for p in PREFIXES if all(key.startswith(p) for key in stripped)), None)
        if found is None:
            return dict(state)
        prefix += found
        stripped = {key.removeprefix(found): value for key, value in stripped.items()}
    if prefix:
        warnings.warn(
            f"expert '{name}': all names of its weights begin with '{prefix}', which is stripped",
            stacklevel=4,
        )
    return stripped


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Say how weights differ from what a network expects.

    Args:
        state: The weights by name.
        expected: The network's own by name.

    Returns:
        Missing, unexpected and misshapen names, at most ten of each kind; empty if none.
    """
    shapes = [
        f"'{key}' has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = [
        [f"missing '{key}'" for key in sorted(expected.keys() - state.keys())],
        [f"unexpected '{key}'" for key in sorted(state.keys() - expected.keys())],
        shapes,
    ]
    return "; ".join(listed(faults, "; ") for faults in kinds if faults)


def listed(items: Sequence[str], between: str = ", ") -> str:
    """List at most ten items.

    Args:
        items: The items.
        between: What stands between two of them.

    Returns:
        The text; it says how many more there are.
    """
    more = f"{between}and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return between.join(items[:SHOWN]) + more

"""Run the demo: save real digits as a dataset, train two experts, and encode them.

Encoding is the ordinary pipeline on the ordinary recipe `demo.yaml`.
"""

import copy
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import timm
import torch
from PIL.Image import Image, Resampling, fromarray
from torch import Tensor, nn

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.experts.finetuning import fit, freeze_batch_norm, write_timm_expert
from coin_hf.experts.preprocessing import timm_preprocessing
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe

RECIPE = Path(__file__).with_name("demo.yaml")
ARCHITECTURE = "resnet50"
SIZE = 32
MADE = ("digits", "experts", "coded", "compared")
"""The content of a demo's folder."""


class Training(NamedTuple):
    """Epochs and learning rate of a training."""

    epochs: int
    lr: float


START = Training(epochs=4, lr=1e-3)
"""Training of the shared start on all ten digits; chosen, as below, for the experts' accuracy."""
FINE_TUNING = Training(epochs=4, lr=1e-4)
"""Of 2 and 4 epochs at 1e-4, and 2 at 3e-4, the most accurate on a tenth of the training rows."""
LABELS = {"low": range(5), "high": range(5, 10)}
BATCH = 32


def run(folder: Path, *, overwrite: bool = False) -> CodedEnsemble:
    """Make data and experts, encode them, save the coded model: two to three minutes on two cores.

    Args:
        folder: Output folder; must be empty or not exist.
        overwrite: Replace an earlier demo there.

    Returns:
        The ensemble.

    Raises:
        InputError: If the folder is in use, or scikit-learn is not installed.
    """
    folder = Path(folder)
    _load_digits()
    clear(folder, overwrite=overwrite)
    make_digits(folder / "digits")
    make_experts(folder / "digits", folder / "experts")
    print("coding the experts", file=sys.stderr)
    ensemble = encode(recipe_in(folder), progress=True)
    ensemble.save_pretrained(folder / "coded")
    print(
        f"saved everything below {folder}, the coded model in {folder / 'coded'}", file=sys.stderr
    )
    return ensemble


def clear(folder: Path, *, overwrite: bool) -> None:
    """Remove an earlier demo.

    Args:
        folder: The demo's folder.
        overwrite: Allow the removal.

    Raises:
        InputError: If the folder is a file, not empty, or holds something other than a demo.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder")
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    if not held:
        return
    if not overwrite:
        raise InputError(
            f"the folder {folder} is not empty: pass --overwrite to replace an earlier demo, "
            "or choose another folder"
        )
    foreign = [path.name for path in held if not _made_by_demo(path)]
    if foreign:
        raise InputError(
            f"the folder {folder} holds something other than a demo ({', '.join(foreign[:5])}), so "
            "--overwrite leaves it alone: choose another folder"
        )
    for path in held:
        shutil.rmtree(path)


def recipe_in(folder: Path) -> Recipe:
    """Return the packaged recipe with the paths of a demo in `folder`."""
    said = Recipe.from_yaml(RECIPE).dump()
    for expert, name in zip(said["experts"], LABELS, strict=True):
        expert["model"] = str(folder / "experts" / name)
    said["task_arithmetic"]["foundation"] = str(folder / "experts" / "start")
    for dataset in said["datasets"].values():
        dataset["path"] = str(folder / "digits")
    return Recipe.from_dict({**said, "output": str(folder / "coded")}, source=str(RECIPE))


def make_digits(folder: Path) -> None:
    """Write scikit-learn's handwritten digits as a parquet dataset with splits train and test.

    Args:
        folder: Output folder.

    Raises:
        InputError: If scikit-learn is not installed.
    """
    digits = _load_digits()
    images = [_image(pixels) for pixels in digits.images]
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[: 3 * len(order) // 4], "test": order[3 * len(order) // 4 :]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
    )
    folder.mkdir(parents=True)
    for split, rows in parts.items():
        columns = {
            "image": [images[i] for i in rows],
            "label": [int(digits.target[i]) for i in rows],
        }
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def make_experts(
    digits: Path,
    folder: Path,
    architecture: str = ARCHITECTURE,
    groups: Mapping[str, Sequence[int]] = LABELS,
    training: Training = FINE_TUNING,
) -> None:
    """Train a shared start on all digits, then one expert for each group of them.

    Args:
        digits: The dataset folder.
        folder: Output folder of the experts, each a timm repository, and of the shared `start`.
        architecture: timm's name for their architecture.
        groups: The digits of each expert, by its name.
        training: Epochs and learning rate of the experts.
    """
    data = datasets.load_dataset("parquet", data_dir=str(digits), split="train")
    # A fork keeps the caller's random state; the seed makes the experts the same every time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = timm.create_model(
            architecture, num_classes=10, pretrained_cfg_overlay=_data_config()
        )
        preprocess = timm_preprocessing(start.pretrained_cfg, channels=3)
        x = torch.stack([preprocess(image) for image in data["image"]])  # (n, 3, 32, 32)
        y = torch.tensor(data["label"][:])
        _train(start.train(), x, y, "shared start", START)
        start.reset_classifier(10)
        _save(start, folder / "start", architecture, "handwritten digits, head not trained")
        for name, labels in groups.items():
            mine = torch.isin(y, torch.tensor(labels))
            expert = copy.deepcopy(start)
            freeze_batch_norm(expert.eval())
            _train(expert, x[mine], y[mine], f"expert '{name}'", training)
            of = f"the handwritten digits {labels[0]} to {labels[-1]}, BatchNorm frozen"
            _save(expert, folder / name, architecture, of)


def _load_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError('the demo needs scikit-learn: pip install "coin-hf[demo]"') from error
    return load_digits()


def _made_by_demo(path: Path) -> bool:
    """Return whether a path is a demo's folder, or the unfinished one of a killed demo."""
    named = path.name in MADE or path.name.startswith(".coded.")
    return named and path.is_dir() and not path.is_symlink()


def _image(pixels: np.ndarray) -> Image:
    """Return one 8x8 digit of values 0 ... 16 as a 32x32 grayscale image."""
    return fromarray((pixels * 255 / 16).astype(np.uint8)).resize((SIZE, SIZE), Resampling.BICUBIC)


def _data_config() -> dict[str, object]:
    return {
        "input_size": (3, SIZE, SIZE),
        "crop_pct": 1.0,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "num_classes": 10,
    }


def _train(model: nn.Module, x: Tensor, y: Tensor, title: str, training: Training) -> None:
    """Train in the model's current mode, on full batches only."""

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            yield x[rows], y[rows]

    fit(
        model,
        batches,
        epochs=training.epochs,
        lr=training.lr,
        weight_decay=0.01,
        batches=len(x) // BATCH,
        title=title,
    )


def _save(model: nn.Module, folder: Path, architecture: str, of: str) -> None:
    """Write a network as a timm repository."""
    card = (
        "---\nlibrary_name: timm\ntags: [image-classification]\n---\n"
        f"# {architecture} for {of}\n"
        "Trained by `coin-hf demo` on scikit-learn's digits at 32x32.\n"
    )
    write_timm_expert(
        folder,
        model,
        architecture,
        label_names=[str(i) for i in range(10)],
        pretrained_cfg={**_data_config(), "interpolation": "bicubic"},
        card=card,
    )

"""Arrays of images as folders of parquet files, as the Hub keeps them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL.Image import fromarray

Data = dict[str, tuple[np.ndarray, np.ndarray]]
"""By split: gray images (n, H, W) of bytes, and labels (n,)."""


def write(folder: Path, data: Data, names: Sequence[str]) -> None:
    """Write a dataset folder with the columns `image` and `label`.

    Args:
        folder: Where to.
        data: Its splits.
        names: Names of the classes.
    """
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    for split, (images, labels) in data.items():
        columns = {"image": [fromarray(image) for image in images], "label": labels.tolist()}
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def pool(folder: Path, parts: Mapping[str, Path]) -> None:
    """Pool the training splits of datasets; the classes of each are classes of their own.

    Args:
        folder: Where to.
        parts: Dataset folders by name.
    """
    names: list[str] = []
    images, labels = [], []
    for name, part in parts.items():
        rows = datasets.load_dataset("parquet", data_dir=str(part), split="train")
        images += list(rows["image"])
        labels += [len(names) + label for label in rows["label"]]
        names += [f"{name} {label}" for label in rows.features["label"].names]
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    data.to_parquet(folder / "train-00000-of-00001.parquet")

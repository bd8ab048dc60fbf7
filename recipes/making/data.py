"""Labelled rows of a dataset for training, some of them held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coin_hf.data.images import ImageRow, LabelledImages
from coin_hf.errors import InputError
from coin_hf.hub.client import pin
from coin_hf.recipe.blocks import DatasetBlock

ANY = 2**31
"""More classes than any dataset has: labels are checked once their names are known."""


@dataclass(frozen=True)
class Rows:
    """Rows of one split, by position."""

    images: LabelledImages
    positions: Sequence[int]
    revision: str

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.positions)

    def __getitem__(self, index: int) -> ImageRow:
        """Return one row; its image is decoded when it is asked for."""
        return self.images.row(self.positions[index])


def classes_of(block: DatasetBlock) -> tuple[str, ...]:
    """Name all classes of a dataset, also those that a filter leaves out.

    Args:
        block: The dataset.

    Returns:
        Their names, K of them.

    Raises:
        InputError: If the label column does not name its classes.
    """
    images = LabelledImages(block.path, block, block.split, ANY)
    names = getattr(images.features.get(images.label_column or ""), "names", None)
    if not names:
        raise InputError(
            f"dataset '{block.path}' does not name its classes: give one whose label column is of "
            "type ClassLabel"
        )
    return tuple(map(str, names))


def rows_of(
    block: DatasetBlock, *, limit: int | None, validation: float, seed: int
) -> tuple[Rows, Rows]:
    """Draw the rows to train on and the rows to validate on.

    Args:
        block: The dataset and its label filter.
        limit: At most so many in all, drawn; None for all.
        validation: Share of them that is held out, in [0, 1).
        seed: Of both draws.

    Returns:
        The two parts.

    Raises:
        InputError: If the share is not in its range, or a part comes to nothing.
    """
    if not 0 <= validation < 1:
        raise InputError(f"--validation must lie in [0, 1), got {validation}")
    revision = pin(block.path, block.revision, "dataset")
    pinned = block.model_copy(update={"revision": revision})
    images = LabelledImages(block.path, pinned, block.split, ANY)
    images.check_usable_for_tests()
    positions = np.random.default_rng(seed).permutation(images.positions())[:limit]
    held = round(validation * len(positions))
    if held == len(positions) or (validation > 0 and held == 0):
        raise InputError(
            f"--validation {validation:g} of {len(positions)} rows leaves one part empty: raise "
            "--limit, or pass --validation 0"
        )
    parts = positions[held:].tolist(), positions[:held].tolist()
    return Rows(images, parts[0], revision), Rows(images, parts[1], revision)

"""One row of a split: an image that is not decoded yet, and its label."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
from datasets import Image

from coin_hf.errors import InputError, boundary
from coin_hf.networks.inputs import stack

SHUFFLE_BUFFER = 1000
"""Rows in the shuffle buffer of a streamed dataset."""

UNKNOWN = -1
"""Label that datasets give to unlabelled rows, as in the test splits of challenges."""


@dataclass(frozen=True)
class Row:
    """One image, not yet decoded."""

    position: int
    """Its index in the split."""
    label: int | None
    encoded: dict[str, Any] | None
    origin: str
    """Its location, for messages."""
    mode: str | None = None
    """The mode that the dataset declares for its images, if any."""
    decoded: PIL.Image.Image | None = None
    """The image, where it was decoded to see whether it is damaged."""

    @property
    def image(self) -> PIL.Image.Image:
        """The decoded image.

        Raises:
            InputError: If there is none, or it cannot be decoded.
        """
        if self.decoded is not None:
            return self.decoded
        if self.encoded is None or set(self.encoded.values()) <= {None}:
            raise InputError(
                f"{self.origin} holds no image: leave such rows out by `skip_damaged: true`"
            )
        with boundary(
            f"the image in {self.origin} is damaged",
            "download the dataset again, or leave such rows out by `skip_damaged: true`",
        ):
            return Image(mode=self.mode).decode_example(self.encoded)

    def prepared(self, preprocessing: Callable[[PIL.Image.Image], Any]) -> Any:
        """Decode and preprocess the image.

        Args:
            preprocessing: Image -> network input.

        Returns:
            The network's input, shape (...).

        Raises:
            InputError: If the image cannot be decoded or preprocessed; the message names the row.
        """
        image = self.image
        try:
            return preprocessing(image)
        except InputError as error:
            raise InputError(f"the image in {self.origin}: {error}") from error

    @property
    def truth(self) -> int:
        """The label.

        Raises:
            InputError: If it is unknown.
        """
        if self.label is None:
            raise InputError(
                f"{self.origin} has no label to measure NDA with: choose a split with labels, or "
                "a label filter that leaves such rows out"
            )
        return self.label


def prepared_batch(rows: Sequence[Row], preprocessing: Callable[[PIL.Image.Image], Any]) -> Any:
    """Decode, preprocess and stack images.

    Args:
        rows: At least one.
        preprocessing: Image -> network input, shape (...).

    Returns:
        Shape (B, ...).

    Raises:
        InputError: If an image cannot be decoded or preprocessed, or two inputs differ in shape.
    """
    inputs = [row.prepared(preprocessing) for row in rows]
    for row, single in zip(rows, inputs, strict=True):
        if single.shape != inputs[0].shape:
            raise InputError(
                f"the images in {rows[0].origin} and in {row.origin} become inputs of different "
                f"shapes, {tuple(inputs[0].shape)} and {tuple(single.shape)}: save the experts "
                "with a preprocessing that makes a fixed size (crop, or resize to height and width)"
            )
    return stack(inputs)


def without_damaged(rows: Iterable[Row]) -> tuple[list[Row], set[int]]:
    """Leave out rows whose images are missing or cannot be decoded.

    Args:
        rows: The rows.

    Returns:
        The other rows, decoded, in order; and the positions of those left out.
    """
    sound, damaged = [], set()
    for row in rows:
        try:
            sound.append(replace(row, decoded=row.image))
        except InputError:
            damaged.add(row.position)
    return sound, damaged


def count_damaged(found: Iterable[tuple[str, Collection[int]]]) -> dict[str, int]:
    """Count the damaged rows that were left out, with a warning for each split.

    Args:
        found: `dataset:split`, and the positions of its damaged rows; one may occur repeatedly.

    Returns:
        Rows by `dataset:split`, each counted once.
    """
    every: dict[str, set[int]] = {}
    for place, positions in found:
        if positions:
            every.setdefault(place, set()).update(positions)
    for place, positions in every.items():
        warnings.warn(
            f"{len(positions)} damaged or missing images of {place} are left out, as "
            "`skip_damaged` says",
            stacklevel=4,
        )
    return {place: len(positions) for place, positions in every.items()}


def known(label: int | None) -> int:
    """Replace an absent label by `UNKNOWN`."""
    return UNKNOWN if label is None else label


def shuffled(rows: Iterator[Row], rng: np.random.Generator) -> Iterator[Row]:
    """Yield rows in random order from a shuffle buffer."""
    buffer = list(islice(rows, SHUFFLE_BUFFER))
    for row in rows:
        j = int(rng.integers(len(buffer)))
        yield buffer[j]
        buffer[j] = row
    yield from (buffer[j] for j in rng.permutation(len(buffer)))

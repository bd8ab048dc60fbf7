"""The rows of a split, of whatever kind: an input that is not read yet, and its label."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, TypeVar

import numpy as np
from typing_extensions import Self

from coin_hf.errors import InputError
from coin_hf.experts.text_preprocessing import TextPreprocessing
from coin_hf.networks.inputs import stack

AnyRow = TypeVar("AnyRow", bound="Row")

SHUFFLE_BUFFER = 1000
"""Rows in the shuffle buffer of a streamed dataset."""

UNKNOWN = -1
"""Label that datasets give to unlabelled rows, as in the test splits of challenges."""


@dataclass(frozen=True)
class Row(ABC):
    """One row: an image that is not decoded yet, or a text."""

    position: int
    """Its index in the split."""
    label: int | None
    content: Any
    """What the dataset holds: the encoded image, or the texts."""
    origin: str
    """Its location, for messages."""

    noun: ClassVar[str]
    """What it is called in messages."""

    @property
    @abstractmethod
    def value(self) -> Any:
        """The decoded image, the text, or the pair of texts.

        Raises:
            InputError: If there is none, or it is damaged.
        """

    @abstractmethod
    def checked(self) -> Self:
        """Return the row, its value known to be there.

        Raises:
            InputError: If it is not.
        """

    def fed_to(self, preprocessing: Callable[..., Any], value: Any) -> Any:
        """Preprocess the row's value."""
        return preprocessing(value)

    def prepared(self, preprocessing: Callable[..., Any]) -> Any:
        """Read and preprocess the row.

        Args:
            preprocessing: Image or text -> network input.

        Returns:
            The network's input, without batch axis.

        Raises:
            InputError: If it cannot be read or preprocessed; the message names the row.
        """
        value = self.value
        try:
            return self.fed_to(preprocessing, value)
        except InputError as error:
            raise InputError(f"the {self.noun} in {self.origin}: {error}") from error

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


def prepared_batch(rows: Sequence[Row], preprocessing: Callable[..., Any]) -> Any:
    """Read, preprocess and batch rows.

    Args:
        rows: At least one.
        preprocessing: Image -> network input, shape (...), or an expert's tokenizer.

    Returns:
        Shape (B, ...); texts are padded to the longest one.

    Raises:
        InputError: If a row cannot be read or preprocessed, or two images become inputs of
            different shapes.
    """
    inputs = [row.prepared(preprocessing) for row in rows]
    if isinstance(preprocessing, TextPreprocessing):
        return preprocessing.padded(inputs)
    for row, single in zip(rows, inputs, strict=True):
        if single.shape != inputs[0].shape:
            raise InputError(
                f"the images in {rows[0].origin} and in {row.origin} become inputs of different "
                f"shapes, {tuple(inputs[0].shape)} and {tuple(single.shape)}: save the experts "
                "with a preprocessing that makes a fixed size (crop, or resize to height and width)"
            )
    return stack(inputs)


def without_damaged(rows: Iterable[AnyRow]) -> tuple[list[AnyRow], set[int]]:
    """Leave out rows whose images or texts are missing or cannot be read.

    Args:
        rows: The rows.

    Returns:
        The other rows, images decoded, in order; and the positions of those left out.
    """
    sound, damaged = [], set()
    for row in rows:
        try:
            sound.append(row.checked())
        except InputError:
            damaged.add(row.position)
    return sound, damaged


def count_damaged(
    found: Iterable[tuple[str, Collection[int]]], what: str = "damaged or missing images"
) -> dict[str, int]:
    """Count the damaged rows that were left out, with a warning for each split.

    Args:
        found: `dataset:split`, and the positions of its damaged rows; one may occur repeatedly.
        what: What they are.

    Returns:
        Rows by `dataset:split`, each counted once.
    """
    every: dict[str, set[int]] = {}
    for place, positions in found:
        if positions:
            every.setdefault(place, set()).update(positions)
    for place, positions in every.items():
        warnings.warn(
            f"{len(positions)} {what} of {place} are left out, as `skip_damaged` says",
            stacklevel=4,
        )
    return {place: len(positions) for place, positions in every.items()}


def known(label: int | None) -> int:
    """Replace an absent label by `UNKNOWN`."""
    return UNKNOWN if label is None else label


def shuffled(rows: Iterator[AnyRow], rng: np.random.Generator) -> Iterator[AnyRow]:
    """Yield rows in random order from a shuffle buffer."""
    buffer = list(islice(rows, SHUFFLE_BUFFER))
    for row in rows:
        j = int(rng.integers(len(buffer)))
        yield buffer[j]
        buffer[j] = row
    yield from (buffer[j] for j in rng.permutation(len(buffer)))

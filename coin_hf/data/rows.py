"""One row of a split: an image that is not decoded yet, and its label."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
from datasets import Image

from coin_hf.errors import InputError

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

    @property
    def image(self) -> PIL.Image.Image:
        """The decoded image.

        Raises:
            InputError: If there is none, or it cannot be decoded.
        """
        if self.encoded is None:
            raise InputError(f"{self.origin} holds no image: leave that row out of the dataset")
        try:
            return Image().decode_example(self.encoded)
        except (OSError, SyntaxError) as error:
            reason = re.sub(r" <.*>", "", str(error))  # Pillow shows the object it reads from
            raise InputError(
                f"the image in {self.origin} is damaged ({reason}): download the dataset again, "
                "or leave that row out"
            ) from error

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

"""Images of a dataset: rows that are decoded on use."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import PIL.Image
from datasets import Dataset, Image

from coin_hf.data.columns import described, find_column
from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.data.rows import Row, prepared_batch
from coin_hf.errors import InputError, boundary
from coin_hf.recipe.blocks import DatasetBlock


@dataclass(frozen=True)
class ImageRow(Row):
    """One image, not yet decoded."""

    mode: str | None = None
    """The mode that the dataset declares for its images, if any."""
    decoded: PIL.Image.Image | None = None
    """The image, where it was decoded to see whether it is damaged."""

    noun: ClassVar[str] = "image"

    @property
    def image(self) -> PIL.Image.Image:
        """The decoded image.

        Raises:
            InputError: If there is none, or it cannot be decoded.
        """
        if self.decoded is not None:
            return self.decoded
        if self.content is None or set(self.content.values()) <= {None}:
            raise InputError(
                f"{self.origin} holds no image: leave such rows out by `skip_damaged: true`"
            )
        with boundary(
            f"the image in {self.origin} is damaged",
            "download the dataset again, or leave such rows out by `skip_damaged: true`",
        ):
            return Image(mode=self.mode).decode_example(self.content)

    @property
    def value(self) -> PIL.Image.Image:
        """The decoded image."""
        return self.image

    def checked(self) -> "ImageRow":
        """Return the row with its image decoded."""
        return replace(self, decoded=self.image)


class LabelledImages(LabelledRows[ImageRow]):
    """Images and their labels."""

    noun = "image"
    readable = "decoded"
    lacking = "damaged or missing images"

    @property
    def image_column(self) -> str:
        """The column of the images."""
        return self.contents[0]

    def check_one_shape(self, preprocessing: Callable[[Any], Any]) -> None:
        """Refuse images of several sizes that become inputs of several shapes.

        Args:
            preprocessing: Image -> network input; it is run once for each size.

        Raises:
            InputError: If two shapes differ, or an image cannot be decoded; not for a streamed
                split, which is read once.
        """
        first: dict[tuple[int, int], ImageRow] = {}
        if isinstance(self.data, Dataset):
            for _, rows in self.batches(64, limit=None, seed=(0,), shard=(0, 1)):
                first = {row.image.size: row for row in reversed(rows)} | first
            self.damaged.clear()  # counted again where rows are used: a limit may leave some out
            if first:
                prepared_batch(list(first.values()), preprocessing)

    def _contents(self, block: DatasetBlock) -> tuple[str, ...]:
        """Find the image column."""
        for key in ("text", "max_length"):
            if getattr(block, key) is not None:
                raise InputError(
                    f"datasets.{self.name}.{key} is for texts, but its expert classifies images: "
                    f"leave it out, or give an expert fine-tuned for text classification"
                )
        column = find_column(self.name, self.features, "image", block.image)
        if column is None:
            raise InputError(
                f"dataset '{self.name}' has no image column, only {described(self.features)}: "
                f"give a dataset with a column of type Image"
            )
        self.mode = self.features[column].mode
        return (column,)

    def _undecoded(self, data: Any) -> Any:
        """Decode images only on use."""
        return data.cast_column(self.image_column, Image(decode=False))

    def _made(self, position: int, truth: int | None, contents: Any, origin: str) -> ImageRow:
        """Make a row of an encoded image."""
        return ImageRow(position, truth, contents[0], origin, self.mode)

"""Texts of a dataset, or pairs of texts: rows that are tokenised on use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from coin_hf.data.columns import find_texts
from coin_hf.data.images import LabelledImages
from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.data.labels import Owner
from coin_hf.data.opening import Datasets
from coin_hf.data.rows import Row
from coin_hf.errors import InputError
from coin_hf.experts.text_preprocessing import AnyPreprocessing, TextPreprocessing
from coin_hf.recipe.blocks import DatasetBlock


@dataclass(frozen=True)
class TextRow(Row):
    """One text, or a pair of texts."""

    max_length: int | None = None
    """Tokens that it is cut to, if the recipe says so."""

    noun: ClassVar[str] = "text"

    @property
    def value(self) -> str | tuple[str, ...]:
        """The text or pair.

        Raises:
            InputError: If one is missing.
        """
        if any(text is None for text in self.content):
            raise InputError(
                f"{self.origin} holds no text: leave such rows out by `skip_damaged: true`"
            )
        texts: tuple[str, ...] = self.content
        return texts[0] if len(texts) == 1 else texts

    def checked(self) -> "TextRow":
        """Return the row, its texts known to be there."""
        _ = self.value
        return self

    def fed_to(self, preprocessing: Callable[..., Any], value: Any) -> Any:
        """Tokenise the text, cut to its dataset's length."""
        return preprocessing(value, self.max_length)


class LabelledTexts(LabelledRows[TextRow]):
    """Texts and their labels."""

    noun = "text"
    readable = "read"
    lacking = "missing texts"

    def check_length(self, preprocessing: TextPreprocessing) -> None:
        """Refuse a length that tokenizer or network do not take.

        Args:
            preprocessing: The experts' tokenizer.

        Raises:
            InputError: If the recipe asks for more tokens, or has to say how many.
        """
        try:
            preprocessing.length(self.max_length)
        except InputError as error:
            raise InputError(f"dataset '{self.name}': {error}") from error

    def _contents(self, block: DatasetBlock) -> tuple[str, ...]:
        """Find the text columns."""
        if block.image is not None:
            raise InputError(
                f"datasets.{self.name}.image is for images, but its expert classifies texts: name "
                f"the column of its texts as datasets.{self.name}.text"
            )
        self.max_length = block.max_length
        return find_texts(self.name, self.features, block.text, block.label)

    def _made(self, position: int, truth: int | None, contents: Any, origin: str) -> TextRow:
        """Make a row of a text or pair."""
        return TextRow(position, truth, contents, origin, self.max_length)


def open_rows(
    preprocessing: AnyPreprocessing,
    name: str,
    block: DatasetBlock,
    split: str,
    num_classes: int,
    datasets: Datasets | None = None,
    owner: Owner | None = None,
) -> LabelledRows[Any]:
    """Open a split as the inputs that an expert takes.

    Args:
        preprocessing: The experts', which decides between images and texts.
        name: The dataset's name in the recipe, for messages.
        block: Its location, columns and label filter.
        split: The split to open.
        num_classes: K; labels must be below it.
        datasets: Datasets already open; by default none.
        owner: The expert whose classes the labels are; by default class numbers are taken as they
            are.

    Returns:
        Its rows.

    Raises:
        InputError: If the dataset, its split or its columns cannot be found, or its texts may be
            longer than the experts take.
    """
    if not isinstance(preprocessing, TextPreprocessing):
        return LabelledImages(name, block, split, num_classes, datasets, owner)
    texts = LabelledTexts(name, block, split, num_classes, datasets, owner)
    texts.check_length(preprocessing)
    return texts

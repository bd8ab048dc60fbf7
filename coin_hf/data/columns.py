"""Columns that the recipe names, cast to what they mean: bytes to images, text to classes."""

from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, Value

from coin_hf.errors import InputError, boundary


def cast_named(name: str, data: Any, image: str | None, label: str | None) -> Any:
    """Cast the columns that a recipe names where their type only hints at what they hold.

    Args:
        name: The dataset's name, for messages.
        data: One split.
        image: The image column that the recipe names, if any: bytes, or a struct of bytes and path.
        label: The label column that it names, if any: booleans, whole numbers written as floats, or
            text.

    Returns:
        The split with an `Image` and a `ClassLabel` or integer column; as it is where nothing needs
        to be cast.

    Raises:
        InputError: If a column cannot be cast.
    """
    features = data.features
    if image in features and _holds_bytes(features[image]):
        data = data.cast_column(image, Image(decode=False))
    kind = features[label].dtype if label in features and _plain(features[label]) else ""
    if kind == "bool" or kind.startswith("float"):
        with boundary(
            f"dataset '{name}' has labels in '{label}' that are no whole numbers",
            "give a column of class numbers or names",
        ):
            data = data.cast_column(label, Value("int64"))
    elif "string" in kind:
        data = _named_classes(name, data, str(label))
    return data


def _holds_bytes(feature: Any) -> bool:
    """Say whether a column holds files: plain bytes, or `{bytes, path}` as pandas writes images."""
    if isinstance(feature, dict | Features):
        return "bytes" in feature
    return _plain(feature) and "binary" in feature.dtype


def _plain(feature: Any) -> bool:
    return isinstance(feature, Value)


def _named_classes(name: str, data: Any, label: str) -> Any:
    """Number the classes of a text column by their sorted names; experts match them by name."""
    if not isinstance(data, Dataset):
        raise InputError(
            f"dataset '{name}' has text in its label column '{label}', which cannot be numbered "
            f"when streamed: set datasets.{name}.streaming to false"
        )
    names = sorted({value for value in data[label][:] if value is not None})
    return data.cast_column(label, ClassLabel(names=names))

"""The columns of images, texts and labels: found by type or name, cast to what they hold."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datasets import ClassLabel, Dataset, Features, Image, Value

from coin_hf.data.labels import invented
from coin_hf.errors import InputError, boundary

KINDS = {"image": Image, "label": ClassLabel}
"""The type by which a column is found."""


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


def find_column(
    name: str, features: Mapping[str, Any], what: Literal["image", "label"], given: str | None
) -> str | None:
    """Find a column by its type, or check the one that the recipe names.

    Args:
        name: The dataset's name, for messages.
        features: Its columns with their types.
        what: Which column.
        given: The name that the recipe gives, if any.

    Returns:
        The column's name; None if no column is of that type.

    Raises:
        InputError: If the named column is of another type, or several columns could be meant.
    """
    kind = KINDS[what]
    for column, feature in features.items():
        names = getattr(feature, "names", None) or []
        if isinstance(feature, ClassLabel) and not all(isinstance(each, str) for each in names):
            raise InputError(
                f"dataset '{name}' names the classes of '{column}' by something else than text: "
                "correct its metadata"
            )
    fitting = [
        column
        for column, feature in features.items()
        if isinstance(feature, kind) and not invented(getattr(feature, "names", ()) or ())
    ]
    if given is not None:
        kind_of = str(getattr(features.get(given), "dtype", ""))
        numbers = what == "label" and _plain(features.get(given)) and "int" in kind_of
        if given in fitting or numbers:
            return given
        raise InputError(
            f"dataset '{name}' has no {what} column '{given}': its columns are "
            f"{described(features)}"
        )
    if len(fitting) > 1:
        raise InputError(
            f"dataset '{name}' has several {what} columns ({', '.join(fitting)}): "
            f"name one as datasets.{name}.{what}"
        )
    return fitting[0] if fitting else None


def find_texts(
    name: str,
    features: Mapping[str, Any],
    given: str | Sequence[str] | None,
    label: str | None,
) -> tuple[str, ...]:
    """Find the column of texts, or check those that the recipe names.

    Args:
        name: The dataset's name, for messages.
        features: Its columns with their types.
        given: The name that the recipe gives, or two names; None if it gives none.
        label: The label column that it names, if any: text in it is no input.

    Returns:
        One column, or two for pairs of texts.

    Raises:
        InputError: If a named column holds no text, or none is named and not just one does.
    """
    held = [c for c, f in features.items() if _plain(f) and "string" in f.dtype and c != label]
    if given is not None:
        columns = (given,) if isinstance(given, str) else tuple(given)
        for column in columns:
            if column not in held:
                raise InputError(
                    f"dataset '{name}' has no text column '{column}': its columns are "
                    f"{described(features)}"
                )
        return columns
    if not held:
        raise InputError(
            f"dataset '{name}' has no text column, only {described(features)}: give a dataset with "
            "a column of text"
        )
    if len(held) > 1:
        raise InputError(
            f"dataset '{name}' has several text columns ({', '.join(held)}): name one, or two for "
            f"pairs of texts, as datasets.{name}.text"
        )
    return (held[0],)


def described(features: Mapping[str, Any]) -> str:
    """Return columns with their types, for a message.

    Args:
        features: The columns.

    Returns:
        One line; "none" if there are none.
    """
    kinds = {name: getattr(f, "dtype", None) or type(f).__name__ for name, f in features.items()}
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"


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

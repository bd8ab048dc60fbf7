"""Match the classes of a dataset to an expert's, by name where both have names."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from coin_hf.errors import InputError
from coin_hf.experts.classes import folded
from coin_hf.recipe.blocks import DatasetBlock

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
"""Names that `datasets` gives to the classes of an unlabelled `train/*.png, test/*.png`."""
SHOWN = 10
"""Class names listed in a message."""


def invented(names: Sequence[str]) -> bool:
    """Say whether class names are those of split folders, so that there are no labels.

    Args:
        names: The names of a `ClassLabel` column.

    Returns:
        Whether all are names of splits.
    """
    return bool(names) and {name.casefold() for name in names} <= SPLITS


class Owner(NamedTuple):
    """The expert that a dataset belongs to, as far as labels are concerned."""

    name: str
    classes: Sequence[str] | None
    """The names of its K classes, if it has any."""
    rows: Sequence[int] | None = None
    """The row of the logits for each of its classes; by default class k has row k."""


def rows_by_class(
    dataset: str,
    names: Sequence[str],
    kept: Collection[int] | None,
    block: DatasetBlock,
    owner: Owner | None,
) -> dict[int, int] | None:
    """Find the row of an expert's logits for each class of its dataset.

    Args:
        dataset: The dataset's name, for messages.
        names: The names of its classes, if any.
        kept: The classes that its label filter lets pass; None for all.
        block: What the recipe says of it.
        owner: Its expert, if known.

    Returns:
        Row by class; None where they are the same.

    Raises:
        InputError: If a class has no single partner.
    """
    matched = _matched(dataset, names, kept, block, owner)
    if owner is None or owner.rows is None:
        return matched
    if matched is None:
        return dict(enumerate(owner.rows))
    return {number: owner.rows[own] for number, own in matched.items()}


def match_classes(
    dataset: str,
    names: Sequence[str],
    used: Sequence[int],
    expert: str,
    own: Sequence[str],
    label_map: Mapping[str, str] | None = None,
) -> dict[int, int]:
    """Map a dataset's class numbers to an expert's.

    Names match exactly, or else without regard to case, spaces, hyphens and underscores. A dataset
    whose names are just 0, 1, 2, ... is taken by number where the expert has other names.

    Args:
        dataset: The dataset's name, for messages.
        names: Its classes.
        used: The numbers of those that are used.
        expert: The expert's name, for messages.
        own: The expert's classes.
        label_map: Names of the dataset -> names of the expert, given by the recipe.

    Returns:
        Class of the expert by class of the dataset, for each one used.

    Raises:
        InputError: If a name has no partner, or several; both lists are shown.
    """
    given = dict(label_map or {})
    if list(names) == list(own) and not given:  # also where two classes have one name
        return {number: number for number in used}
    numbered = list(map(str, range(len(names))))  # as `ClassLabel(num_classes=...)` names them
    if list(names) == numbered and not given and not set(numbered) & set(own):
        warnings.warn(
            f"dataset '{dataset}' names its classes by number alone: they are taken to be those "
            f"of expert '{expert}' by number",
            stacklevel=7,
        )
        return {number: number for number in used}
    found, unmatched = {}, []
    for number in used:
        partners = _partners(given.get(names[number], names[number]), own)
        if len(partners) == 1:
            found[number] = partners[0]
        else:
            unmatched.append(names[number])
    if unmatched:
        raise InputError(
            f"dataset '{dataset}' and expert '{expert}' name their classes differently: no single "
            f"partner for {_listed(unmatched)} among the expert's {_listed(own)}; set "
            f"datasets.{dataset}.label_map to `{{dataset's name: expert's name}}`, or "
            f"datasets.{dataset}.labels_by to position if both number them alike"
        )
    return found


def class_numbers(dataset: str, wanted: Sequence[int | str], names: Sequence[str]) -> set[int]:
    """Convert a label filter to class numbers.

    Args:
        dataset: The dataset's name, for messages.
        wanted: Numbers or names.
        names: The names of the dataset's classes; empty if it names none.

    Returns:
        The numbers.

    Raises:
        InputError: If no class has such a name.
    """
    kept = set()
    for label in wanted:
        if isinstance(label, str) and label not in names:
            raise InputError(
                f"dataset '{dataset}' has no class '{label}': its classes are "
                f"{_listed(names) or 'not named, use numbers'}"
            )
        kept.add(names.index(label) if isinstance(label, str) else label)
    return kept


def _matched(
    dataset: str,
    names: Sequence[str],
    kept: Collection[int] | None,
    block: DatasetBlock,
    owner: Owner | None,
) -> dict[int, int] | None:
    """Return the expert's own class for each of the dataset's; None where they are the same."""
    if owner is None or not names or not owner.classes or block.labels_by == "position":
        return None
    used = sorted(kept) if kept is not None else range(len(names))
    known = [number for number in used if number < len(names)]
    found = match_classes(dataset, names, known, owner.name, owner.classes, block.label_map)
    if all(number == other for number, other in found.items()):
        return None
    warnings.warn(
        f"dataset '{dataset}' numbers its classes in another order than expert '{owner.name}': "
        "they are matched by name",
        stacklevel=7,
    )
    return found


def _partners(name: str, own: Sequence[str]) -> list[int]:
    exact = [i for i, other in enumerate(own) if other == name]
    return exact or [i for i, other in enumerate(own) if folded(other) == folded(name)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more

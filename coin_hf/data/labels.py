"""Match the classes of a dataset to an expert's, by name where both have names."""

import warnings
from collections.abc import Mapping, Sequence

from coin_hf.errors import InputError
from coin_hf.experts.heads import folded

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


def _partners(name: str, own: Sequence[str]) -> list[int]:
    exact = [i for i, other in enumerate(own) if other == name]
    return exact or [i for i, other in enumerate(own) if folded(other) == folded(name)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more

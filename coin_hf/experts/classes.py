"""Decide which logits of the experts are coded together, and give all of them those rows.

Row k of every network's logits must be one class, or unlike classes are averaged. Experts with
label sets S_i of their own are widened to the union of K labels, f~_i = S_i f_i.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.experts.heads import head_tensors, place
from coin_hf.experts.merged_config import JOINED
from coin_hf.recipe.blocks import Classes
from coin_hf.records.coin import ClassOrder

SHOWN = 5
"""Class names listed in a message."""


def folded(name: str) -> str:
    """Fold a class name: without case, spaces, hyphens and underscores.

    Args:
        name: The name.

    Returns:
        Names that fold alike are taken for one class where no exact name matches.
    """
    return re.sub(r"[\s_-]+", "", name).casefold()


def with_labels(expert: Expert, labels: Sequence[str] | None) -> Expert:
    """Give an expert the class names that a recipe says.

    Args:
        expert: The expert, its rows in its own order.
        labels: Its names, in its own order; None to keep those it records.

    Returns:
        The expert.

    Raises:
        InputError: If there is not one name for each class.
    """
    if labels is None:
        return expert
    if len(labels) != expert.num_classes:
        raise InputError(
            f"expert '{expert.name}' has {expert.num_classes} classes, but the recipe's `labels` "
            f"name {len(labels)}"
        )
    return replace(expert, label_names=tuple(labels))


def in_common_rows(experts: Sequence[Expert], classes: Classes | None = None) -> list[Expert]:
    """Give every expert one row for each class of all, by the names of the classes.

    Args:
        experts: At least one expert; those whose rows move are changed in place.
        classes: Which classes share a row: those of one name (`name`), of one number (`position`),
            or none (`separate`). By default by name, but by position where all experts number as
            many classes and no name stands at two numbers.

    Returns:
        The experts; `class_order` holds the rows of those whose own they are not.

    Raises:
        InputError: If classes cannot be matched, or a head cannot be found.
    """
    if classes is None:
        classes = "position" if _by_position(experts) else "name"
        if classes == "position":
            _tell_of_joined(experts)
    if classes == "position":
        return list(experts)
    if classes == "separate":
        rows, names = _separate(experts)
    else:
        rows, names = _by_name(experts)
    if all(len(own) == len(names) for own in rows):
        return [
            _permuted_like(experts[0], expert, own)
            for expert, own in zip(experts, rows, strict=True)
        ]
    _tell(experts, rows, len(names))
    return [_widened(expert, own, names) for expert, own in zip(experts, rows, strict=True)]


def _permuted_like(first: Expert, expert: Expert, rows: Sequence[int]) -> Expert:
    """Permute the rows of an expert that has the first one's classes in another order."""
    if list(rows) == list(range(len(rows))):
        return expert
    warnings.warn(
        f"expert '{expert.name}' numbers its classes in another order than '{first.name}': the "
        "rows of its head are permuted to match, and its answers are given in its own order",
        stacklevel=5,
    )
    return place(expert, ClassOrder(rows=list(rows), tensors=head_tensors(expert, rows)))


def _widened(expert: Expert, rows: Sequence[int], names: Sequence[str]) -> Expert:
    """Place the rows of an expert among those of all labels."""
    width = len(names)
    if list(rows) == list(range(width)):
        return expert  # it has every label, each in its row
    tensors = head_tensors(expert, rows, width)
    return place(expert, ClassOrder(rows=list(rows), tensors=tensors, width=width), names)


def _by_position(experts: Sequence[Expert]) -> bool:
    """Say whether class k of one expert may be class k of the others."""
    named = [expert.label_names for expert in experts if expert.label_names is not None]
    if len({expert.num_classes for expert in experts}) > 1:
        return False
    if len(named) < len(experts):
        return True
    for fold in (str, folded):
        number: dict[str, set[int]] = {}
        for names in named:
            if len({fold(name) for name in names}) < len(names):
                return True  # what has one name cannot be told apart by it
            for k, name in enumerate(names):
                for part in name.split(JOINED):
                    number.setdefault(fold(part), set()).add(k)
        if any(len(numbers) > 1 for numbers in number.values()):
            return False
    return True


def _by_name(experts: Sequence[Expert]) -> tuple[list[list[int]], list[str]]:
    """Number the union of the labels: the first expert's, then what each next one adds."""
    names: list[str] = []
    rows: list[list[int]] = []
    for expert in experts:
        own = _names(expert)
        found: list[int | None] = [*_partners(own, names)]
        for k, row in enumerate(found):
            if row is None:
                found[k] = len(names)
                names.append(own[k])
        rows.append([row for row in found if row is not None])
        if len(set(rows[-1])) < len(own) or len(set(own)) < len(own):
            raise InputError(
                f"expert '{expert.name}' gives several classes one name: tell them apart by "
                "`labels` of that expert in the recipe"
            )
    return rows, names


def _partners(own: Sequence[str], names: Sequence[str]) -> Iterator[int | None]:
    """Find the row of each name: exactly, in a joined name, or else as names fold."""
    exact = {name: row for row, name in enumerate(names)}
    parts = {part: row for row, name in enumerate(names) for part in name.split(JOINED)}
    loose: dict[str, int | None] = {}
    for part, row in parts.items():
        known = loose.setdefault(folded(part), row)
        loose[folded(part)] = row if known == row else None  # of two that fold alike, neither
    for name in own:
        yield exact.get(name, parts.get(name, loose.get(folded(name))))


def _separate(experts: Sequence[Expert]) -> tuple[list[list[int]], list[str]]:
    """Give every class of every expert a row of its own."""
    rows: list[list[int]] = []
    names: list[str] = []
    for expert in experts:
        own = expert.label_names or [str(k) for k in range(expert.num_classes)]
        rows.append(list(range(len(names), len(names) + len(own))))
        names += [f"{expert.name}: {name}" for name in own]
    return rows, names


def _names(expert: Expert) -> Sequence[str]:
    if expert.label_names is None:
        raise InputError(
            f"expert '{expert.name}' has no class names to match with the other experts': give "
            f"its {expert.num_classes} names as `labels` of that expert in the recipe, or set "
            "`classes: separate`"
        )
    return expert.label_names


def _tell_of_joined(experts: Sequence[Expert]) -> None:
    """Warn that classes of different names share a row."""
    named = [expert.label_names for expert in experts if expert.label_names is not None]
    joined = [
        JOINED.join(dict.fromkeys(column))
        for column in zip(*named, strict=True)
        if len({folded(name) for name in column}) > 1
    ]
    if joined:
        more = f" and {len(joined) - SHOWN} more" if len(joined) > SHOWN else ""
        warnings.warn(
            f"the experts give classes of one number different names ({', '.join(joined[:SHOWN])}"
            f"{more}), which share a row: `classes: name` gives each its own, which codes better "
            "with heads of their own",
            stacklevel=4,
        )


def _tell(experts: Sequence[Expert], rows: Sequence[Sequence[int]], count: int) -> None:
    """Warn that heads are widened: which labels are shared, and which are one expert's alone."""
    owners = [sum(row in own for own in rows) for row in range(count)]
    parts = [
        f"'{expert.name}' has {len(own)} ({sum(owners[row] == 1 for row in own)} alone)"
        for expert, own in zip(experts, rows, strict=True)
    ]
    warnings.warn(
        f"the experts have labels of their own: {', '.join(parts)}; their heads are widened to "
        f"the {count} of all, with zeros for labels that an expert does not have, and its answers "
        "are given for its own labels in its own order",
        stacklevel=4,
    )

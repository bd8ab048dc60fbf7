"""The outputs that each expert has: all others of its K are known to be zero."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelSets:
    """The rows of the K logits that are each expert's own.

    Experts with label sets of their own are widened to the union of K labels. What expert i does
    not know, f_i,k = 0, needs no answer of it: label k is decoded by the experts that have it.

    Example:
        >>> sets = LabelSets(rows=((0, 1), (1, 2)), count=3)
        >>> sets.groups
        {(0,): (0,), (0, 1): (1,), (1,): (2,)}
    """

    rows: tuple[tuple[int, ...], ...]
    """For each of N experts the row of each of its own classes, in its own order."""
    count: int
    """K, the labels of all experts together."""

    @cached_property
    def groups(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The rows that the same experts have: experts, ascending -> rows, ascending.

        A row that no expert has is left out.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for row in range(self.count):
            owners = tuple(i for i, own in enumerate(self.rows) if row in own)
            if owners:
                found.setdefault(owners, []).append(row)
        return {owners: tuple(rows) for owners, rows in found.items()}

    def sharing(self, expert: int) -> tuple[int, ...]:
        """Find the experts whose answers decoding an expert takes: those that share a label.

        Args:
            expert: Index of the missing expert.

        Returns:
            Indices of the others, ascending; empty if a coded model alone answers for it.
        """
        found = {i for owners in self.groups if expert in owners for i in owners}
        return tuple(sorted(found - {expert}))

    def predict(self, expert: int, logits: Tensor) -> Tensor:
        """Return the class that an expert's logits name, among its own.

        Args:
            expert: Index of the expert.
            logits: Shape (B, K).

        Returns:
            Shape (B,): the row of the largest of its own logits.
        """
        own = torch.tensor(self.rows[expert], device=logits.device)
        return own[logits[:, own].argmax(1)]


def predicted(sets: LabelSets | None, expert: int, logits: Tensor) -> Tensor:
    """Return the class that an expert's logits name, among its own where it has a label set.

    Args:
        sets: The label sets; None if every expert has all K classes.
        expert: Index of the expert.
        logits: Shape (B, K).

    Returns:
        Shape (B,), rows of the logits.
    """
    return logits.argmax(1) if sets is None else sets.predict(expert, logits)


def missing_together(
    sets: LabelSets | None, experts: int, missing: Collection[int], coded: int
) -> list[list[int]]:
    """Find the missing experts of whom too many share a label for so many coded models.

    Args:
        sets: The label sets; None if every expert has all K classes.
        experts: N.
        missing: Indices of the missing experts.
        coded: Number of coded models that answer.

    Returns:
        Groups of more than `coded` missing experts that have a label in common, each ascending: no
        expert in one of them can be decoded, and every other missing one can.
    """
    groups = (tuple(range(experts)),) if sets is None else tuple(sets.groups)
    found = [[i for i in owners if i in missing] for owners in groups]
    return [lost for lost in found if len(lost) > coded]


def check_label_sets(sets: LabelSets, experts: int) -> None:
    """Check label sets against the number of experts.

    Args:
        sets: The label sets.
        experts: N.

    Raises:
        ValueError: If there are not N, one names a row twice, or one that does not exist.
    """
    if len(sets.rows) != experts:
        raise ValueError(f"expected the label sets of {experts} experts, got {len(sets.rows)}")
    for i, own in enumerate(sets.rows):
        if len(set(own)) < len(own) or not all(0 <= row < sets.count for row in own):
            raise ValueError(
                f"the label set of expert {i} must hold different rows of 0 to {sets.count - 1}, "
                f"got {_shown(own)}"
            )


def _shown(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (" ..." if len(rows) > 10 else "")

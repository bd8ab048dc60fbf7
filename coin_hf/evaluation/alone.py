"""The answers of a coded model alone, and what each method's answer costs in networks run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.erasure.alone import closest_coded
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.evaluation.methods import (
    ALONE_CONTROLS,
    CODED_ALONE,
    CODED_ALONE_OWN,
    NO_CODED_MODEL,
    OUTPUT_AVERAGE,
)


def own_rows(test_set: LabelledRows[Any], sets: LabelSets | None, expert: int) -> tuple[int, ...]:
    """Find the rows of the logits that may be labels of an expert's own data.

    They are what is declared: the classes that the dataset names, or those of its label filter, as
    far as the expert has them. No label of a test row is looked at.

    Args:
        test_set: The expert's test set.
        sets: The label sets; None if every expert has all K classes.
        expert: Index of the expert.

    Returns:
        The rows, ascending; all of the expert's where the dataset declares none.
    """
    owned = set(range(test_set.num_classes) if sets is None else sets.rows[expert])
    numbers = test_set.kept
    if numbers is None and test_set.class_names:
        numbers = set(range(len(test_set.class_names)))
    if numbers is not None:
        rows = test_set.rows
        owned &= numbers if rows is None else {rows[n] for n in numbers if n in rows}
    return tuple(sorted(owned))


def answer_alone(
    expert: int, coded: Sequence[Tensor], code: ErasureCode, own: Sequence[int] | None
) -> dict[str, Tensor]:
    """Predict an expert's classes from one coded model, that of the largest beta for it.

    What the other experts answer is not asked, so that the answer is the same whichever of them
    are missing too: it is measured where one expert is missing, and not again for each pattern.

    Args:
        expert: Index of the expert.
        coded: Logits (B, K) of the M coded models.
        code: The erasure code.
        own: Rows of the labels of its own data; None for the first control alone.

    Returns:
        Predicted classes, shape (B,), by control. Decoding is not told which labels are the
        expert's own beyond its label set: the second control is.
    """
    logits = coded[closest_coded(code.rows, expert, range(code.num_coded))]
    found = {CODED_ALONE: logits.argmax(1)}
    if own is not None:
        rows = torch.tensor(own, device=logits.device)
        found[CODED_ALONE_OWN] = rows[logits[:, rows].argmax(1)]
    return found


def networks_run(method: str, expert: int, pattern: Sequence[int], code: ErasureCode) -> int | None:
    """Count the networks that run for one answer for a missing expert.

    Args:
        method: The method, or the control.
        expert: Index of the expert.
        pattern: Indices of all missing experts.
        code: The erasure code.

    Returns:
        For decoding, the experts that are there and share a label with the missing one, and all M
        coded models: N for one missing of N, M = 1. 1 for a coded model alone, None for the output
        average, which takes the missing answer itself.
    """
    others = range(code.num_experts) if code.labels is None else code.labels.sharing(expert)
    there = len(set(others) - set(pattern))
    if method == OUTPUT_AVERAGE:
        return None
    if method in ALONE_CONTROLS:
        return 1
    return there if method == NO_CODED_MODEL else there + code.num_coded

"""Checks and sums over the answers that arrived, by index of the network that gave them."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from coin_hf.erasure.betas import Rows

Names = Collection[int | str]
"""Networks by index (from 0, in the recipe's order) or by name."""


def numbers(answers: Mapping[int, Tensor] | Sequence[int]) -> tuple[int, ...]:
    """Return the indices of answers, ascending.

    Args:
        answers: Answers by index, or indices.

    Returns:
        The indices.
    """
    return tuple(sorted(answers))


def indices(what: str, who: Names, count: int, names: Sequence[str] = ()) -> list[int]:
    """Map networks, given by name or index, to unique indices.

    Args:
        what: What they are, in messages.
        who: Names or indices, or one name.
        count: The number of networks.
        names: Their names, in order; by default they are given by index alone.

    Returns:
        The indices, ascending.

    Raises:
        ValueError: If there is no such network.
    """
    found = set()
    for each in [who] if isinstance(who, str) else who:  # a text is itself a collection
        if isinstance(each, str) and each not in names:
            raise ValueError(f"there is no {what} '{each}': they are named {', '.join(names)}")
        number = names.index(each) if isinstance(each, str) else each
        if not 0 <= number < count:
            raise ValueError(f"there is no {what} {number}: they are numbered 0 to {count - 1}")
        found.add(number)
    return sorted(found)


def check_numbers(experts: Sequence[int], coded: Sequence[int], rows: Rows) -> None:
    """Reject indices that no network has.

    Args:
        experts: Indices of experts.
        coded: Indices of coded models.
        rows: The betas, shape (M, N).

    Raises:
        ValueError: If one is out of range.
    """
    for what, given, size in (
        ("expert", experts, len(rows[0])),
        ("coded model", coded, len(rows)),
    ):
        for number in given:
            if not 0 <= number < size:
                raise ValueError(f"there is no {what} {number}: they are numbered 0 to {size - 1}")


def check_shapes(experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]) -> None:
    """Reject answers of different shapes: broadcasting would give a wrong result.

    Args:
        experts: The experts' answers by index.
        coded: The coded models' answers by index, at least one.

    Raises:
        ValueError: If two shapes differ.
    """
    expected = next(iter(coded.values())).shape
    for what, answers in (("expert", experts), ("coded model", coded)):
        for number, answer in answers.items():
            if answer.shape != expected:
                raise ValueError(
                    f"the answer of {what} {number} has shape {tuple(answer.shape)}, expected "
                    f"{tuple(expected)} as the others"
                )


def wide(output: Tensor) -> Tensor:
    """Widen half precision: decoding would amplify its rounding errors.

    Args:
        output: Any floating dtype.

    Returns:
        The same numbers in float32 or wider.
    """
    return output.to(torch.promote_types(output.dtype, torch.float32))


def weighted_sum(
    outputs: Mapping[int, Tensor], weights: Sequence[float] | Mapping[int, float]
) -> Tensor:
    """Return sum w_i f_i over the given answers, by ascending index.

    Args:
        outputs: At least one answer, by index.
        weights: A weight for each index.

    Returns:
        The sum, in float32 or wider.
    """
    first, *rest = sorted(outputs)
    total = weights[first] * wide(outputs[first])
    for i in rest:
        total = total + weights[i] * wide(outputs[i])
    return total

"""Answer for an expert by one coded model alone, without the other experts.

f_c estimates sum_j beta_cj f_j, not f_i: its logits are those of another function. What it may
answer for expert i is the class, argmax f_c(x).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from torch import Tensor

from coin_hf.erasure.answers import check_numbers, check_shapes, numbers
from coin_hf.erasure.betas import Rows
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import missing_together

Way = Literal["expert", "decoded", "alone"]
"""How an answer comes about: the expert's own, decoded, or that of a coded model alone."""


def closest_coded(rows: Rows, expert: int, coded: Collection[int]) -> int:
    """Choose the coded model that answers for an expert alone: the one that weights it most.

    Args:
        rows: The betas, shape (M, N).
        expert: Index of the expert.
        coded: Indices of the coded models that answer, at least one.

    Returns:
        The one of largest beta_ci; the first of equal ones.
    """
    return max(sorted(coded), key=lambda c: rows[c][expert])


def ways(code: ErasureCode, missing: Sequence[int], coded: Collection[int]) -> list[Way]:
    """Say how each expert is answered for.

    Args:
        code: The erasure code.
        missing: Indices of the missing experts.
        coded: Indices of the coded models that answer; where there are none, a missing expert
            cannot be answered for at all.

    Returns:
        N ways, in the experts' order; `alone` where decoding is impossible.
    """
    together = missing_together(code.labels, code.num_experts, missing, len(coded))
    return [
        "expert" if i not in missing else "alone" if any(i in lost for lost in together)
        else "decoded"
        for i in range(code.num_experts)
    ]  # fmt: skip


def check_answerable(
    code: ErasureCode, missing: Sequence[int], coded: Sequence[int], *, alone: bool
) -> None:
    """Check that the missing experts can be answered for.

    Args:
        code: The erasure code.
        missing: Indices of the missing experts.
        coded: Indices of the coded models that answer.
        alone: Whether a coded model alone may answer for those that cannot be decoded.

    Raises:
        ValueError: If they cannot; where `alone=True` would help, it says so.
    """
    if alone and coded:
        return
    try:
        code.check_decodable(missing, coded)
    except ValueError as error:
        way_out = "; alone=True takes a coded model's own answer for them" if coded else ""
        raise ValueError(f"{error}{way_out}") from None


def decode_or_alone(
    code: ErasureCode, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """Decode the missing answers that can be; for each other one, give a coded model's own.

    An expert is answered for in one way: its logits are never decoded for some labels and a coded
    model's for others, which could not be compared.

    Args:
        code: The erasure code.
        experts: The available answers by expert index, shape (B, K).
        coded: The available coded answers by index of the coded model, same shape.

    Returns:
        Shape (B, K) by index of the missing expert: fhat_i, or f_c of `closest_coded`.

    Raises:
        ValueError: If an answer is missing and there is no coded one, an index is out of range or
            shapes differ.
    """
    missing = [i for i in range(code.num_experts) if i not in experts]
    how = ways(code, missing, coded)
    if not coded or "alone" not in how:
        return code.decode(experts, coded)
    check_numbers(numbers(experts), numbers(coded), code.rows)
    check_shapes(experts, coded)
    return {
        i: coded[closest_coded(code.rows, i, coded)]
        if how[i] == "alone"
        else code.decode(experts, coded, only=i)[i]
        for i in missing
    }

"""Logits as the Hub's inference API answers them, and back."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from coin_hf.errors import InputError
from coin_hf.serve.events import How

Function = Literal["softmax", "sigmoid", "none"]
FUNCTIONS: tuple[Function, ...] = ("softmax", "sigmoid", "none")


def elements(
    logits: Tensor,
    labels: Sequence[str],
    *,
    top_k: int | None = None,
    function: Function = "softmax",
    how: How = "direct",
) -> list[dict[str, Any]]:
    """Write an answer as classification elements, the best first.

    Args:
        logits: Raw logits, shape (K,).
        labels: K class names.
        top_k: How many; by default all.
        function: What is applied to the logits.
        how: How the answer came about, which each element says where it is not the expert's own.

    Returns:
        `[{"label", "score"}]`, with `"decoded": true` where it is computed from others', and also
        `"alone": true` where it is a coded model's own, so that a client that knows of decoded
        answers alone takes it for no better.
    """
    wide = logits.double()
    match function:
        case "softmax":
            wide = wide.softmax(0)
        case "sigmoid":
            wide = wide.sigmoid()
    best = wide.argsort(descending=True, stable=True)[:top_k].tolist()
    mark = {} if how == "direct" else {"decoded": True}
    mark |= {"alone": True} if how == "alone" else {}
    return [{"label": labels[k], "score": wide[k].item(), **mark} for k in best]


def logits_of(answer: Any, labels: Sequence[str]) -> Tensor:
    """Read logits from another server's answer, which applied no function.

    Args:
        answer: Its JSON: elements of all K classes, perhaps in a list of one.
        labels: The K class names, in the order of the logits.

    Returns:
        Shape (K,), float32.

    Raises:
        InputError: If it is of another form, or does not name each class once.
    """
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list):
        answer = answer[0]
    try:
        scores = {str(each["label"]): float(each["score"]) for each in answer}
    except (TypeError, KeyError, ValueError) as error:
        raise InputError("the answer holds no list of labels and scores") from error
    lacking = [label for label in labels if label not in scores]
    if lacking or not len(answer) == len(scores) == len(set(labels)) == len(labels):
        raise InputError(
            f"the answer has {len(answer)} classes, not the {len(labels)} of the expert"
            + (f": '{lacking[0]}' is not there" if lacking else "")
        )
    return torch.tensor([scores[label] for label in labels])

"""Normalized decoding accuracy (NDA), arXiv:2409.01420, eq. (18), as an `evaluate` module."""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Normalized decoding accuracy (NDA) measures how much of a classifier's accuracy is kept when its
answer is decoded from a coded model and the other classifiers' answers:

    NDA = 100 * #{decoded prediction = reference} / #{expert's own prediction = reference}

In percent; 100 means that nothing is lost. It can exceed 100.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): classes predicted from the decoded outputs.
    references (list of int): true classes.
    expert_predictions (list of int): classes that the expert itself predicts for the same inputs.

Returns:
    nda (float): normalized decoding accuracy, in percent; nan if the expert is never right.
    decoded_accuracy (float): share of decoded predictions that are right.
    expert_accuracy (float): share of the expert's own predictions that are right.
    agreement (float): share of inputs for which both predict the same class.

Examples:
    >>> nda = evaluate.load("coin_hf/metrics/nda")
    >>> nda.compute(predictions=[0, 1, 2, 2], references=[0, 1, 2, 3], expert_predictions=[0, 1, 2, 3])
    {'nda': 75.0, 'decoded_accuracy': 0.75, 'expert_accuracy': 1.0, 'agreement': 0.75}
"""

_CITATION = """
@article{jhunjhunwala2024erasure,
  title   = {Erasure Coded Neural Network Inference via Fisher Averaging},
  author  = {Jhunjhunwala, Divyansh and Jali, Neharika and Joshi, Gauri and Wang, Shiqiang},
  journal = {arXiv preprint arXiv:2409.01420},
  year    = {2024}
}
"""


def nda(predictions: Any, references: Any, expert_predictions: Any) -> dict[str, float]:
    """Compute NDA and its component accuracies.

    Args:
        predictions: Classes predicted from the decoded outputs, shape (n,).
        references: True classes, shape (n,).
        expert_predictions: Classes that the expert itself predicts, shape (n,).

    Returns:
        A dict with `nda` in percent (nan if the expert is never right), and `decoded_accuracy`,
        `expert_accuracy` and `agreement` as shares.

    Raises:
        ValueError: If the three differ in length or are empty.
    """
    decoded, truth, own = (np.asarray(x) for x in (predictions, references, expert_predictions))
    if not decoded.shape == truth.shape == own.shape or decoded.ndim != 1 or not len(decoded):
        raise ValueError(
            "predictions, references and expert_predictions must be equally long, and not empty; "
            f"got shapes {decoded.shape}, {truth.shape} and {own.shape}"
        )
    right, own_right = int((decoded == truth).sum()), int((own == truth).sum())
    return {
        "nda": 100.0 * right / own_right if own_right else float("nan"),
        "decoded_accuracy": right / len(truth),
        "expert_accuracy": own_right / len(truth),
        "agreement": float((decoded == own).mean()),
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class NDA(evaluate.Metric):
    """Normalized decoding accuracy; `NDA().compute(...)` takes the three fields below."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "expert_predictions": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2409.01420"],
        )

    def _compute(
        self, predictions: Any, references: Any, expert_predictions: Any
    ) -> dict[str, float]:
        return nda(predictions, references, expert_predictions)

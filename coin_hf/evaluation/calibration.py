"""Measure coding losses (weights for decoding) and the corruption threshold."""

from collections.abc import Sequence

import torch
from torch import Tensor

from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.scores import coding_errors
from coin_hf.records.measurements import Calibration

QUANTILE = 0.99
"""Share of the samples whose parity residual raises no alarm."""


def calibrate(experts: Sequence[Tensor], coded: Sequence[Tensor], code: ErasureCode) -> Calibration:
    """Measure the coded models on the samples.

    Args:
        experts: Logits of the N experts on the samples, each (P, K).
        coded: Logits of the M coded models on them, each (P, K).
        code: The erasure code.

    Returns:
        The calibration.
    """
    losses = coding_errors(experts, coded, code).double().mean(1).tolist()
    weighted = ErasureCode(code.rows, losses=losses, labels=code.labels)
    residuals = weighted.residual(dict(enumerate(experts)), dict(enumerate(coded))).double()
    threshold = torch.quantile(residuals, QUANTILE).item()
    return Calibration(
        losses=losses, threshold=threshold, samples=len(residuals), quantile=QUANTILE
    )

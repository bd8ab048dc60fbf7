"""What the samples say of the coded models: how far to trust each, and when to raise an alarm."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.erasures import coding_errors

QUANTILE = 0.99
"""Share of the samples whose parity residual raises no alarm."""


@dataclass(frozen=True)
class Calibration:
    """What `coin.json` records of a code's measured quality; no label and no test data enter."""

    losses: tuple[float, ...]
    """Coding loss of each coded model on the samples, shape (M,), in squared logits: decoding
    weighs a coded answer by its inverse."""
    threshold: float
    """Parity residual above which complete answers count as corrupted: `QUANTILE` of the samples
    lie below."""
    samples: int
    """How many samples decided."""

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "losses": list(self.losses), "quantile": QUANTILE}


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
    weighted = ErasureCode(code.rows, losses=losses)
    residuals = weighted.residual(dict(enumerate(experts)), dict(enumerate(coded))).double()
    threshold = torch.quantile(residuals, QUANTILE).item()
    return Calibration(tuple(losses), threshold, len(residuals))

"""The Fisher engine: diag E_x[J^T J] of a classifier's raw logits, for any network."""

from coin_hf.fisher.diagonal import diagonal_fisher
from coin_hf.fisher.estimators import Estimator, resolve_estimator
from coin_hf.fisher.partial import Checkpoint, Partial

__all__ = ["Checkpoint", "Estimator", "Partial", "diagonal_fisher", "resolve_estimator"]

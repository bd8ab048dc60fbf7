"""The Fisher engine: diag E_x[J^T J] of a classifier's raw logits, for any network."""

from coin_hf.fisher.checkpoint import Checkpoint, Partial
from coin_hf.fisher.diagonal import diagonal_fisher
from coin_hf.fisher.estimators import Estimator, resolve_estimator

__all__ = ["Checkpoint", "Estimator", "Partial", "diagonal_fisher", "resolve_estimator"]

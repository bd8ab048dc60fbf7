"""Normalized decoding accuracy, as a class and through `evaluate.load`."""

from coin_hf.metrics.nda.nda import NDA, nda

__all__ = ["NDA", "nda"]

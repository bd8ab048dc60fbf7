"""Normalized decoding accuracy, importable as a class as well as by `evaluate.load`."""

from coin_hf.metrics.nda.nda import NDA, nda

__all__ = ["NDA", "nda"]

"""Metrics of decoded answers, each an `evaluate` module in its own folder."""

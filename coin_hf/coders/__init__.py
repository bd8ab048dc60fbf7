"""Coders: pure functions from the experts' parameters to the coded model's."""

from coin_hf.coders.averaging import average, average_buffers
from coin_hf.coders.coin import fisher_average

__all__ = ["average", "average_buffers", "fisher_average"]

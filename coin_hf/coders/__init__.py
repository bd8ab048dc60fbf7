"""Coders: from the experts' parameters, and what the samples say, to the coded model's."""

from coin_hf.coders.averaging import average, average_buffers
from coin_hf.coders.coin import fisher_average
from coin_hf.coders.distillation import distill
from coin_hf.coders.gram_matrices import gram_matrices, transposed_weights
from coin_hf.coders.regmean import regmean
from coin_hf.coders.task_arithmetic import ALPHA_CANDIDATES, task_arithmetic

__all__ = [
    "ALPHA_CANDIDATES",
    "average",
    "average_buffers",
    "distill",
    "fisher_average",
    "gram_matrices",
    "regmean",
    "task_arithmetic",
    "transposed_weights",
]

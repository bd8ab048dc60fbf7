"""Slow, obvious oracles: the paper's formulas in plain Python numbers and loops."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def merged(
    thetas: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    betas: Sequence[float],
    lam: float,
) -> dict[str, Tensor]:
    """theta_c = sum_i bbar_i (F_i + lam) theta_i / sum_i bbar_i (F_i + lam), eq. (17)."""
    coded = {}
    for name, like in thetas[0].items():
        flat_thetas = [theta[name].flatten().tolist() for theta in thetas]
        flat_fishers = [fisher[name].flatten().tolist() for fisher in fishers]
        values = []
        for entry in range(like.numel()):
            above = below = mean = 0.0
            for i, beta in enumerate(betas):
                bbar = beta * sum(betas)
                weight = bbar * (flat_fishers[i][entry] + lam)
                above += weight * flat_thetas[i][entry]
                below += weight
                mean += beta * flat_thetas[i][entry]
            values.append(above / below if below > 0 else mean)
        coded[name] = torch.tensor(values, dtype=torch.float64).reshape(like.shape)
    return coded


def mean(thetas: Sequence[Mapping[str, Tensor]], betas: Sequence[float]) -> dict[str, Tensor]:
    """sum_i beta_i theta_i."""
    averaged = {}
    for name, like in thetas[0].items():
        values = [0.0] * like.numel()
        for beta, theta in zip(betas, thetas, strict=True):
            for entry, value in enumerate(theta[name].flatten().tolist()):
                values[entry] += beta * value
        averaged[name] = torch.tensor(values, dtype=torch.float64).reshape(like.shape)
    return averaged


def encoded(outputs: Sequence[list[float]], betas: Sequence[float]) -> list[float]:
    """f_c = sum_i beta_i f_i for the logits of one input."""
    coded = [0.0] * len(outputs[0])
    for beta, logits in zip(betas, outputs, strict=True):
        for k, value in enumerate(logits):
            coded[k] += beta * value
    return coded


def decoded(
    missing: int, outputs: Sequence[list[float]], coded: list[float], betas: Sequence[float]
) -> list[float]:
    """fhat_i = (f_c - sum_{j != i} beta_j f_j) / beta_i for the logits of one input."""
    answer = []
    for k, value in enumerate(coded):
        for j, logits in enumerate(outputs):
            if j != missing:
                value -= betas[j] * logits[k]
        answer.append(value / betas[missing])
    return answer


def coding_loss(
    outputs: Sequence[Sequence[list[float]]],
    coded: Sequence[list[float]],
    betas: Sequence[float],
) -> float:
    """Mean over inputs of ||f_c - sum_i beta_i f_i||^2, eq. (5); outputs[i][l][k]."""
    total = 0.0
    for row, answer in enumerate(coded):
        target = encoded([expert[row] for expert in outputs], betas)
        for k, value in enumerate(answer):
            total += (value - target[k]) ** 2
    return total / len(coded)


def predicted(logits: list[float]) -> int:
    """The class with the largest logit, the first of equal ones."""
    best = 0
    for k, value in enumerate(logits):
        if value > logits[best]:
            best = k
    return best


def nda(answers: Sequence[int], truths: Sequence[int], own: Sequence[int]) -> float | None:
    """100 * #{decoded right} / #{expert right}, eq. (18); None if the expert never is."""
    right = own_right = 0
    for answer, truth, expert in zip(answers, truths, own, strict=True):
        right += answer == truth
        own_right += expert == truth
    return 100 * right / own_right if own_right else None

"""Choose a coder's hyperparameter on the samples: by NDA, or without labels by agreement."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import predicted
from coin_hf.erasure.patterns import erasure_patterns
from coin_hf.evaluation.scores import coding_errors, decode_missing, score
from coin_hf.records.measurements import Choice

LAM_CANDIDATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of `lam: auto`: the decades of arXiv:2409.01420."""


def choose(
    key: str,
    candidates: Sequence[float],
    coded_logits: Callable[[float], Sequence[Tensor]],
    expert_logits: Sequence[Tensor],
    samples: Samples,
    code: ErasureCode,
    *,
    own: Sequence[Tensor] | None = None,
) -> Choice:
    """Try each candidate on the samples and keep the best, one value for all coded models.

    Every pattern of up to M missing experts is decoded. Each missing expert is judged on the
    samples drawn from its own data, as in evaluation, and the measures are averaged. Ties go to the
    smaller coding loss, then to the earlier candidate.

    Args:
        key: The recipe's key for the hyperparameter.
        candidates: The values to try, at least one.
        coded_logits: Value -> the M coded models' logits on the samples, each (P, K); called once
            for each value, with one forward pass of each model.
        expert_logits: Logits of the N experts on the samples, each (P, K), computed once.
        samples: The samples, or the part held out for this.
        code: The erasure code.
        own: For each expert a boolean mask of the samples it is judged on, shape (P,); by default
            those of the draw with its index.

    Returns:
        The choice.
    """
    if own is None:
        own = [samples.sources == i for i in range(len(expert_logits))]
    scores = [
        {"value": value, **measure(coded_logits(value), expert_logits, samples, code, own=own)}
        for value in candidates
    ]
    by: Literal["nda", "agreement"] = (
        "nda" if all("nda" in entry for entry in scores) else "agreement"
    )
    return Choice(key=key, by=by, samples=len(samples), scores=scores)


def measure(
    coded: Sequence[Tensor],
    experts: Sequence[Tensor],
    samples: Samples,
    code: ErasureCode,
    *,
    own: Sequence[Tensor],
) -> dict[str, float]:
    """Measure coded models on the samples.

    Args:
        coded: Logits of the M coded models on them, each (P, K).
        experts: Logits of the N experts, each (P, K).
        samples: The samples.
        code: The erasure code.
        own: For each expert a boolean mask of the samples it is judged on, shape (P,).

    Returns:
        `nda` (percent, if there are labels), `agreement` and `coding_loss`, averaged over the
        patterns of missing experts.
    """
    found = []
    for pattern in erasure_patterns(len(experts), code.num_coded)[0]:
        for i in pattern:
            mine = own[i]
            logits, c = [expert[mine] for expert in experts], [each[mine] for each in coded]
            decoded = decode_missing(pattern, logits, {"coded": c}, code)["coded"][i]
            labels = None if samples.labels is None else samples.labels[mine]
            errors = coding_errors(logits, c, code)
            answer, own_answer = (predicted(code.labels, i, f) for f in (decoded, logits[i]))
            found.append(score(answer, own_answer, labels, errors))
    ndas = [each.nda for each in found]
    known = {} if None in ndas else {"nda": _mean(ndas)}
    return known | {
        key: _mean([getattr(each, key) for each in found]) for key in ("agreement", "coding_loss")
    }


def _mean(values: Sequence[float | None]) -> float:
    return torch.tensor(values, dtype=torch.float64).mean().item()

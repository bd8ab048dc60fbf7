"""Choose a coder's hyperparameter on the samples: by NDA, or without labels by agreement."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import predicted
from coin_hf.erasure.patterns import erasure_patterns
from coin_hf.evaluation.scores import coding_errors, decode_missing, score
from coin_hf.records.measurements import Choice, Scores

LAM_CANDIDATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of `lam: auto`: the decades of arXiv:2409.01420."""
FEW = 20
"""Samples of each draw on which a race tries all candidates (docs/pages/experiments/probes.md)."""
FINALISTS = 3
"""One in so many candidates, but two at least, is tried on all samples."""


def choose(
    key: str,
    candidates: Sequence[float],
    coded_logits: Callable[[float, Tensor], Sequence[Tensor]],
    expert_logits: Sequence[Tensor],
    samples: Samples,
    code: ErasureCode,
    *,
    own: Sequence[Tensor] | None = None,
    race: bool = True,
) -> Choice:
    """Try candidates on the samples and keep the best, one value for all coded models.

    A race tries all of them on the first `FEW` samples of each draw, and the third of them with the
    smallest coding loss there, two at least, on the other samples too. Without one, or where a draw
    has fewer than twice `FEW` samples, all are tried on all.

    Every pattern of up to M missing experts is decoded. Each missing expert is judged on the
    samples drawn from its own data, as in evaluation, and the measures are averaged. Ties go to the
    smaller coding loss, then to the earlier candidate.

    Args:
        key: The recipe's key for the hyperparameter.
        candidates: The values to try, at least one.
        coded_logits: Value and positions of n samples, shape (n,) -> the M coded models' logits on
            them, each (n, K); called for each sample and value once at most.
        expert_logits: Logits of the N experts on the samples, each (P, K), computed once.
        samples: The samples, or the part held out for this.
        code: The erasure code.
        own: For each expert a boolean mask of the samples it is judged on, shape (P,); by default
            those of the draw with its index.
        race: Whether to race.

    Returns:
        The choice, with the number of samples that each candidate was tried on.
    """
    if own is None:
        own = [samples.sources == i for i in range(len(expert_logits))]

    def scored(value: float, logits: Sequence[Tensor], at: Tensor) -> Scores:
        labels = None if samples.labels is None else samples.labels[at]
        experts, mine = [f[at] for f in expert_logits], [mask[at] for mask in own]
        found = measure(logits, experts, labels, code, own=mine)
        return {"value": value, "samples": len(at), **found}

    everything = torch.arange(len(samples))
    if not (race and can_race(candidates, samples)):
        scores = [
            scored(value, coded_logits(value, everything), everything) for value in candidates
        ]
        return Choice(key=key, by=criterion(scores), samples=len(samples), scores=scores)
    few = samples.first(FEW)
    others = everything[~torch.isin(everything, few)]
    tried = [coded_logits(value, few) for value in candidates]
    scores = [scored(value, f, few) for value, f in zip(candidates, tried, strict=True)]
    order = torch.cat([few, others]).argsort()
    final = finalists(scores)
    for i in final:
        more = coded_logits(candidates[i], others)
        logits = [torch.cat(parts)[order] for parts in zip(tried[i], more, strict=True)]
        scores[i] = scored(candidates[i], logits, everything)
    by = criterion([scores[i] for i in final])
    return Choice(key=key, by=by, samples=len(samples), scores=scores)


def can_race(candidates: Sequence[float], samples: Samples) -> bool:
    """Tell whether a race saves anything: more candidates than finalists, and enough samples.

    Args:
        candidates: The values to try.
        samples: The samples to try them on.

    Returns:
        Whether it does.
    """
    enough = all(len(rows) >= 2 * FEW for rows in samples.rows)
    return len(candidates) > _places(candidates) and enough


def criterion(scores: Sequence[Scores]) -> Literal["nda", "agreement"]:
    """Return what candidates are chosen by: NDA where all have one, else agreement.

    Args:
        scores: Of the candidates, measured on the same samples.

    Returns:
        The key of the scores.
    """
    return "nda" if all("nda" in entry for entry in scores) else "agreement"


def finalists(scores: Sequence[Scores]) -> list[int]:
    """Return the candidates that a race tries on all samples.

    They are those with the smallest coding loss: NDA and agreement of few samples move in steps too
    coarse to tell candidates apart.

    Args:
        scores: Of the candidates, measured on the few samples.

    Returns:
        The positions of a third of them, two at least, in the candidates' order.
    """
    ranked = sorted(range(len(scores)), key=lambda i: scores[i]["coding_loss"])
    return sorted(ranked[: _places(scores)])


def _places(candidates: Sequence[object]) -> int:
    return max(2, math.ceil(len(candidates) / FINALISTS))


def measure(
    coded: Sequence[Tensor],
    experts: Sequence[Tensor],
    labels: Tensor | None,
    code: ErasureCode,
    *,
    own: Sequence[Tensor],
) -> dict[str, float]:
    """Measure coded models on samples.

    Args:
        coded: Logits of the M coded models on them, each (P, K).
        experts: Logits of the N experts, each (P, K).
        labels: The samples' classes, shape (P,), or None.
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
            truth = None if labels is None else labels[mine]
            errors = coding_errors(logits, c, code)
            answer, own_answer = (predicted(code.labels, i, f) for f in (decoded, logits[i]))
            found.append(score(answer, own_answer, truth, errors))
    ndas = [each.nda for each in found]
    known = {} if None in ndas else {"nda": _mean(ndas)}
    return known | {
        key: _mean([getattr(each, key) for each in found]) for key in ("agreement", "coding_loss")
    }


def _mean(values: Sequence[float | None]) -> float:
    return torch.tensor(values, dtype=torch.float64).mean().item()

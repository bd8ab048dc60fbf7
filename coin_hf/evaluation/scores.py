"""Decode missing answers by every method, and score them against the experts' own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coin_hf.erasure.code import ErasureCode
from coin_hf.evaluation.methods import NO_CODED_MODEL, OUTPUT_AVERAGE
from coin_hf.metrics.nda import nda
from coin_hf.records.measurements import Score


def decode_missing(
    missing: Sequence[int],
    experts: Sequence[Tensor],
    coded: Mapping[str, Sequence[Tensor]],
    code: ErasureCode,
) -> dict[str, dict[int, Tensor]]:
    """Decode the missing answers with each method's coded models and with the two controls.

    Decoding runs in float64 and is rounded once to the missing expert's dtype, so that the scores
    measure the coded model, not rounding in the code: the exact code preserves even ties.

    Args:
        missing: The missing experts' indices.
        experts: The logits of all N experts, each (B, K); those of the missing ones are used only
            by the control `OUTPUT_AVERAGE`.
        coded: Logits (B, K) of the M coded models, by the method that made them.
        code: The erasure code.

    Returns:
        fhat_i, shape (B, K), by method and by i; without `NO_CODED_MODEL` if no expert is left.
    """
    wide = [logits.double() for logits in experts]
    there = {j: logits for j, logits in enumerate(wide) if j not in missing}
    answers = {
        name: code.decode(there, {m: logits.double() for m, logits in enumerate(c)})
        for name, c in coded.items()
    }
    answers[OUTPUT_AVERAGE] = code.decode(there, code.encode(wide))
    if there:
        answers[NO_CODED_MODEL] = dict.fromkeys(missing, _mean_of(there, code))
    return {
        name: {i: logits.to(experts[i].dtype) for i, logits in answer.items()}
        for name, answer in answers.items()
    }


def _mean_of(there: Mapping[int, Tensor], code: ErasureCode) -> Tensor:
    """Average the answers that are there, for each label those of the experts that have it."""
    # Betas averaged over the coded models, to weight the answers present.
    betas = [sum(column) / code.num_coded for column in zip(*code.rows, strict=True)]
    if code.labels is None:
        share = sum(betas[j] for j in there)
        return torch.stack([(betas[j] / share) * logits for j, logits in there.items()]).sum(0)
    mean = torch.zeros_like(next(iter(there.values())))
    for owners, rows in code.labels.groups.items():
        here = [j for j in owners if j in there]
        share = sum(betas[j] for j in here)
        for j in here:
            mean[:, rows] += (betas[j] / share) * there[j][:, rows]
    return mean


def coding_errors(experts: Sequence[Tensor], coded: Sequence[Tensor], code: ErasureCode) -> Tensor:
    """Return ||f_c(x) - sum_i beta_ci f_i(x)||^2 by coded model and input, float64, (M, B)."""
    targets = code.encode([f.double() for f in experts])
    return torch.stack([(c.double() - targets[m]).square().sum(1) for m, c in enumerate(coded)])


def score(
    answers: Tensor,
    expert: Tensor,
    labels: Tensor | None,
    errors: Tensor | None,
    *,
    networks: int | None = None,
) -> Score:
    """Score decoded answers.

    Args:
        answers: Predicted classes of the decoded outputs, shape (n,).
        expert: Predicted classes of the expert itself, shape (n,).
        labels: True classes, shape (n,), or None.
        errors: Squared coding errors, shape (M, n) or (n,), or None.
        networks: Number of networks run for an answer, if known.

    Returns:
        The score; without labels its NDA and accuracy are None.
    """
    loss = None if errors is None else errors.double().mean().item()
    if labels is None:
        agreement = (answers == expert).double().mean().item()
        return Score(
            nda=None,
            decoded_accuracy=None,
            agreement=agreement,
            coding_loss=loss,
            networks=networks,
        )
    found = nda(answers.numpy(), labels.numpy(), expert.numpy())
    return Score(
        nda=found["nda"] if found["expert_accuracy"] > 0 else None,
        decoded_accuracy=found["decoded_accuracy"],
        agreement=found["agreement"],
        coding_loss=loss,
        networks=networks,
    )

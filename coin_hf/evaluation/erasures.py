"""Decode every erasure over the test sets, and measure it beside its controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from coin_hf.data.images import LabelledImages
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.patterns import erasure_patterns
from coin_hf.experts.preprocessing import Preprocessing
from coin_hf.hub.layout import NO_CODED_MODEL, OUTPUT_AVERAGE
from coin_hf.metrics.nda import nda
from coin_hf.networks.logits import call


@dataclass(frozen=True)
class Score:
    """How well one method answers for one missing expert."""

    nda: float | None
    """Normalized decoding accuracy, percent; None if the expert is never right or no labels."""
    decoded_accuracy: float | None
    """Share of decoded answers that are right."""
    agreement: float
    """Share of inputs for which decoded and expert answer agree."""
    coding_loss: float | None
    """Mean over inputs and coded models of ||f_c - sum_i beta_ci f_i||^2, eq. (5); None where
    nothing is coded."""


@dataclass(frozen=True)
class Erasure:
    """One missing expert, measured on its own test set: its accuracy and each method's score."""

    missing: str
    beside: tuple[str, ...]
    """The experts that are missing at the same time; all M coded models answer."""
    points: int
    """Test images."""
    expert_accuracy: float
    """Share of the expert's own answers that are right."""
    scores: dict[str, Score]

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "beside": list(self.beside)}


@dataclass(frozen=True)
class Detection:
    """How the parity check does on one expert's test set, with all experts answering."""

    expert: str
    points: int
    false_alarms: float
    """Share of intact answers that it takes for corrupted."""
    noticed: float
    """Share that it notices where this expert's logits are shifted by one class."""

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """What one evaluation found."""

    erasures: list[Erasure]
    """One entry for each pattern and expert missing in it: single erasures first, in order."""
    patterns: int
    """How many patterns were measured."""
    possible: int
    """How many there are: beyond 256 a sample is measured."""
    detections: list[Detection]
    """One entry for each expert; empty without a threshold."""


def decode_missing(
    missing: Sequence[int],
    experts: Sequence[Tensor],
    coded: Mapping[str, Sequence[Tensor]],
    code: ErasureCode,
) -> dict[str, dict[int, Tensor]]:
    """Answer for the missing experts by each method's coded answers and by the two controls.

    It is computed in float64 and rounded once to the missing expert's dtype, so that what is
    measured is the coded model and no rounding of the code: the exact code keeps even ties.

    Args:
        missing: The experts' numbers.
        experts: The logits of all N experts, each (B, K); those of the missing ones serve the
            control `OUTPUT_AVERAGE` alone.
        coded: Logits (B, K) of the M coded models, by the method that made them.
        code: The erasure code.

    Returns:
        fhat_i, shape (B, K), by method and by i; without `NO_CODED_MODEL` where no expert is left.
    """
    wide = [logits.double() for logits in experts]
    there = {j: logits for j, logits in enumerate(wide) if j not in missing}
    answers = {
        name: code.decode(there, {m: logits.double() for m, logits in enumerate(c)})
        for name, c in coded.items()
    }
    answers[OUTPUT_AVERAGE] = code.decode(there, code.encode(wide))
    if there:
        # The mean over the coded models: what an average of those present comes to.
        betas = [sum(column) / code.coded for column in zip(*code.rows, strict=True)]
        share = sum(betas[j] for j in there)
        weighted = [(betas[j] / share) * logits for j, logits in there.items()]
        answers[NO_CODED_MODEL] = dict.fromkeys(missing, torch.stack(weighted).sum(0))
    return {
        name: {i: logits.to(experts[i].dtype) for i, logits in answer.items()}
        for name, answer in answers.items()
    }


def coding_errors(experts: Sequence[Tensor], coded: Sequence[Tensor], code: ErasureCode) -> Tensor:
    """Return ||f_c(x) - sum_i beta_ci f_i(x)||^2 by coded model and input, float64, (M, B)."""
    targets = code.encode([f.double() for f in experts])
    return torch.stack([(c.double() - targets[m]).square().sum(1) for m, c in enumerate(coded)])


def score(answers: Tensor, expert: Tensor, labels: Tensor | None, errors: Tensor | None) -> Score:
    """Score decoded answers.

    Args:
        answers: Predicted classes of the decoded outputs, shape (n,).
        expert: Predicted classes of the expert itself, shape (n,).
        labels: True classes, shape (n,), or None.
        errors: Squared coding errors, shape (M, n) or (n,), or None.

    Returns:
        The score; without labels its NDA and accuracy are None.
    """
    loss = None if errors is None else errors.double().mean().item()
    if labels is None:
        agreement = (answers == expert).double().mean().item()
        return Score(None, None, agreement, loss)
    found = nda(answers.numpy(), labels.numpy(), expert.numpy())
    return Score(
        nda=found["nda"] if found["expert_accuracy"] > 0 else None,
        decoded_accuracy=found["decoded_accuracy"],
        agreement=found["agreement"],
        coding_loss=loss,
    )


@torch.no_grad()
def evaluate_erasures(
    experts: Mapping[str, nn.Module],
    coded: Mapping[str, Sequence[nn.Module]],
    code: ErasureCode,
    test_sets: Sequence[LabelledImages],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    limit: int | None,
    seed: int,
    accelerator: Accelerator,
    threshold: float | None = None,
    progress: bool = False,
    known: dict[tuple[int, int], list[Tensor]] | None = None,
) -> Measurement:
    """Measure every erasure of up to M experts, each missing expert on its own test set.

    Batches are shared out among the processes and every image counts once.

    Args:
        experts: The N experts by name, in eval mode, on this process's device.
        coded: The M coded models by the method that made them; the first method is checked for
            detection.
        code: The erasure code; all methods are decoded with its weights.
        test_sets: One for each expert.
        preprocessing: The experts' common preprocessing.
        batch_size: Images in one forward pass.
        limit: At most this many images of each test set.
        seed: Seed of their draw, and of that of the patterns.
        accelerator: The processes.
        threshold: Parity residual above which answers count as corrupted.
        progress: Show a bar on stderr, in the main process.
        known: The experts' logits by test set and batch, from an earlier call with the same
            experts, test sets and settings; what is not there yet is computed and added.

    Returns:
        The measurement, the same in every process.
    """
    known = {} if known is None else known
    dtype = next(next(iter(experts.values())).parameters()).dtype
    patterns, possible = erasure_patterns(len(experts), code.coded, seed=seed)
    shard = (accelerator.process_index, accelerator.num_processes)
    names = list(experts)
    found: dict[tuple[int, ...], dict[int, Erasure]] = {pattern: {} for pattern in patterns}
    detections = []
    for i, (name, test_set) in enumerate(zip(experts, test_sets, strict=True)):
        mine = [pattern for pattern in patterns if i in pattern]
        parts: list[tuple[int, dict[Any, Tensor]]] = []
        bar = tqdm(
            test_set.batches(batch_size, limit=limit, seed=(seed, i), shard=shard),
            desc=f"decode '{name}'",
            unit="batch",
            disable=not (progress and accelerator.is_main_process),
        )
        for number, rows in bar:
            images = torch.stack([preprocessing(row.image) for row in rows])  # (B, C, H, W)
            x = images.to(accelerator.device, dtype)
            if (i, number) not in known:
                known[i, number] = [call(model, x).cpu() for model in experts.values()]
            f = known[i, number]
            c = {key: [call(model, x).cpu() for model in models] for key, models in coded.items()}
            part = _measure(i, mine, f, c, code, threshold)
            part["labels"] = torch.tensor([row.truth for row in rows])
            parts.append((number, part))
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        parts.sort(key=lambda part: part[0])
        pooled = {key: torch.cat([p[key] for _, p in parts], dim=-1) for key in parts[0][1]}
        own, labels = pooled["expert"], pooled["labels"]
        for pattern in mine:
            methods = [
                m for m in (*coded, OUTPUT_AVERAGE, NO_CODED_MODEL) if (pattern, m) in pooled
            ]
            found[pattern][i] = Erasure(
                missing=name,
                beside=tuple(names[j] for j in pattern if j != i),
                points=len(labels),
                expert_accuracy=(own == labels).double().mean().item(),
                scores={
                    m: score(pooled[pattern, m], own, labels, pooled.get(("errors", m)))
                    for m in methods
                },
            )
        if threshold is not None:
            alarms, noticed = pooled["alarms"].double(), pooled["noticed"].double()
            detections.append(
                Detection(name, len(labels), alarms.mean().item(), noticed.mean().item())
            )
    erasures = [erasure for each in found.values() for erasure in each.values()]
    return Measurement(erasures, len(patterns), possible, detections)


def _measure(
    i: int,
    patterns: Sequence[tuple[int, ...]],
    experts: Sequence[Tensor],
    coded: Mapping[str, Sequence[Tensor]],
    code: ErasureCode,
    threshold: float | None,
) -> dict[Any, Tensor]:
    """Measure one batch of expert i's test set: predicted classes, squared errors, alarms.

    The last axis of each tensor is the batch.
    """
    found: dict[Any, Tensor] = {"expert": experts[i].argmax(1)}
    for pattern in patterns:
        for method, answers in decode_missing(pattern, experts, coded, code).items():
            found[pattern, method] = answers[i].argmax(1)
    exact = list(code.encode([logits.double() for logits in experts]).values())
    for method, c in (*coded.items(), (OUTPUT_AVERAGE, exact)):
        found["errors", method] = coding_errors(experts, c, code)
    if threshold is not None:
        answers, first = dict(enumerate(experts)), dict(enumerate(next(iter(coded.values()))))
        found["alarms"] = code.residual(answers, first) > threshold
        answers[i] = experts[i].roll(1, dims=1)
        found["noticed"] = code.residual(answers, first) > threshold
    return found

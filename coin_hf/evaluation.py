"""Decode every single erasure over the test sets, and measure it beside its controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from coin_hf.erasure import ErasureCode
from coin_hf.images import LabelledImages
from coin_hf.metrics.nda import nda
from coin_hf.outputs import call
from coin_hf.preprocessing import Preprocessing

OUTPUT_AVERAGE = "output average"
"""Control: the exact sum_i beta_i f_i in place of a coded model; NDA 100 by construction."""
NO_CODED_MODEL = "no coded model"
"""Control: the beta-weighted answers that came, for the missing one; fhat_i = f_j for N = 2."""


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
    """Mean over inputs of ||f_c - sum_i beta_i f_i||^2, eq. (5); None where nothing is coded."""


@dataclass(frozen=True)
class Erasure:
    """One expert missing: its own accuracy and the score of each method in its place."""

    missing: str
    points: int
    """Test images."""
    expert_accuracy: float
    """Share of the expert's own answers that are right."""
    scores: dict[str, Score]

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def decode_missing(
    missing: int, experts: Sequence[Tensor], coded: Mapping[str, Tensor], code: ErasureCode
) -> dict[str, Tensor]:
    """Answer for one missing expert by each coded answer and by the two controls.

    It is computed in float64 and rounded once to the missing expert's dtype, so that what is
    measured is the coded model and no rounding of the code: the exact code keeps even ties.

    Args:
        missing: The expert's number i.
        experts: The logits of all N experts, each (B, K); the missing one's serve the control
            `OUTPUT_AVERAGE` alone.
        coded: Logits (B, K) of each coded model, by the method that made it.
        code: The erasure code.

    Returns:
        fhat_i, shape (B, K), by method.
    """
    wide = [logits.double() for logits in experts]
    there = {j: logits for j, logits in enumerate(wide) if j != missing}
    answers = {name: code.decode(there, {0: c.double()})[missing] for name, c in coded.items()}
    answers[OUTPUT_AVERAGE] = code.decode(there, code.encode(wide))[missing]
    share = sum(code.betas[j] for j in there)
    weighted = [(code.betas[j] / share) * logits for j, logits in there.items()]
    answers[NO_CODED_MODEL] = torch.stack(weighted).sum(0)
    return {name: answer.to(experts[missing].dtype) for name, answer in answers.items()}


def coding_errors(experts: Sequence[Tensor], coded: Tensor, code: ErasureCode) -> Tensor:
    """Return ||f_c(x) - sum_i beta_i f_i(x)||^2 for each input, float64, shape (B,)."""
    return (coded.double() - code.encode([f.double() for f in experts])[0]).square().sum(1)


def score(answers: Tensor, expert: Tensor, labels: Tensor | None, errors: Tensor | None) -> Score:
    """Score decoded answers.

    Args:
        answers: Predicted classes of the decoded outputs, shape (n,).
        expert: Predicted classes of the expert itself, shape (n,).
        labels: True classes, shape (n,), or None.
        errors: Squared coding errors, shape (n,), or None.

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
    coded: Mapping[str, nn.Module],
    code: ErasureCode,
    test_sets: Sequence[LabelledImages],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    limit: int | None,
    seed: int,
    accelerator: Accelerator,
    progress: bool = False,
) -> list[Erasure]:
    """Measure every single erasure on the missing expert's own test set.

    Batches are shared out among the processes and every image counts once.

    Args:
        experts: The N experts by name, in eval mode, on this process's device.
        coded: Coded models by the method that made them.
        code: The erasure code.
        test_sets: One for each expert.
        preprocessing: The experts' common preprocessing.
        batch_size: Images in one forward pass.
        limit: At most this many images of each test set.
        seed: Seed of their draw.
        accelerator: The processes.
        progress: Show a bar on stderr, in the main process.

    Returns:
        One entry for each expert, in order, the same in every process.
    """
    erasures = []
    dtype = next(next(iter(experts.values())).parameters()).dtype
    shard = (accelerator.process_index, accelerator.num_processes)
    for i, (name, test_set) in enumerate(zip(experts, test_sets, strict=True)):
        batches = test_set.batches(batch_size, limit=limit, seed=(seed, i), shard=shard)
        parts: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []
        bar = tqdm(
            batches,
            desc=f"decode '{name}'",
            unit="batch",
            disable=not (progress and accelerator.is_main_process),
        )
        for number, rows in bar:
            images = torch.stack([preprocessing(row.image) for row in rows])  # (B, C, H, W)
            x = images.to(accelerator.device, dtype)
            f = [call(model, x).cpu() for model in experts.values()]
            c = {method: call(model, x).cpu() for method, model in coded.items()}
            answers = {
                method: logits.argmax(1) for method, logits in decode_missing(i, f, c, code).items()
            }
            answers["expert"] = f[i].argmax(1)
            answers["labels"] = torch.tensor([row.truth for row in rows])
            c[OUTPUT_AVERAGE] = code.encode([logits.double() for logits in f])[0]
            errors = {method: coding_errors(f, logits, code) for method, logits in c.items()}
            parts.append((number, answers, errors))
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        parts.sort(key=lambda part: part[0])
        pooled = {key: torch.cat([part[1][key] for part in parts]) for key in parts[0][1]}
        losses = {key: torch.cat([part[2][key] for part in parts]) for key in parts[0][2]}
        own, labels = pooled.pop("expert"), pooled.pop("labels")
        erasures.append(
            Erasure(
                missing=name,
                points=len(labels),
                expert_accuracy=(own == labels).double().mean().item(),
                scores={
                    method: score(predicted, own, labels, losses.get(method))
                    for method, predicted in pooled.items()
                },
            )
        )
    return erasures

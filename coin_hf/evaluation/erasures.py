"""Decode every erasure on the test sets, and score it against controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.data.rows import count_damaged, prepared_batch
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import predicted
from coin_hf.erasure.patterns import erasure_patterns
from coin_hf.errors import InputError
from coin_hf.evaluation.alone import answer_alone, networks_run, own_rows
from coin_hf.evaluation.methods import CONTROLS, OUTPUT_AVERAGE
from coin_hf.evaluation.scores import coding_errors, decode_missing, score
from coin_hf.experts.text_preprocessing import AnyPreprocessing
from coin_hf.networks.inputs import fit_to
from coin_hf.networks.logits import call
from coin_hf.networks.processes import ALONE, Processes
from coin_hf.recipe.blocks import EvaluationBlock
from coin_hf.records.measurements import Detection, Erasure, Patterns


@dataclass(frozen=True)
class Measurement:
    """The measurements of one evaluation."""

    erasures: list[Erasure]
    """One entry for each pattern and expert missing in it: single erasures first, in order."""
    patterns: Patterns
    """Number of patterns measured and possible; above 256, a random subset is measured."""
    detections: list[Detection]
    """One entry for each expert; empty without a threshold."""
    damaged: dict[str, int] = field(default_factory=dict)
    """Test rows left out because they are damaged, by `dataset:split`."""


@torch.no_grad()
def evaluate_erasures(
    experts: Mapping[str, nn.Module],
    coded: Mapping[str, Sequence[nn.Module]],
    code: ErasureCode,
    test_sets: Sequence[LabelledRows[Any]],
    preprocessing: AnyPreprocessing,
    *,
    settings: EvaluationBlock,
    seed: int,
    threshold: float | None = None,
    processes: Processes = ALONE,
    progress: bool = False,
    known: dict[tuple[int, int], list[Tensor]] | None = None,
) -> Measurement:
    """Measure every erasure of up to M experts, each missing expert on its own test set.

    Batches are split among the processes, and every input counts once. Beside the methods and the
    controls stands what the first method's coded models answer alone, without the other experts:
    among all K labels, and among those of the missing expert's own data unless these are all K for
    every expert, when the two are the same. One expert whose own are all K has both all the same,
    so that both averages are over all experts.

    Args:
        experts: The N experts by name, in eval mode, on this process's device.
        coded: The M coded models by the method that made them; the first method, the run's own, is
            checked for detection and answers alone.
        code: The erasure code; all methods are decoded with its weights.
        test_sets: One for each expert.
        preprocessing: The experts' common preprocessing.
        settings: Batch size, and the limit on inputs per test set.
        seed: Seed of the draws of inputs under that limit, and of patterns.
        threshold: Parity residual above which answers count as corrupted.
        processes: The processes that share the batches.
        progress: Show a bar on stderr, in the main process.
        known: Cache of the experts' logits by test set and batch, for calls with the same experts,
            test sets and settings; absent entries are computed and added.

    Returns:
        The measurement, the same in every process.

    Raises:
        InputError: If a test set has no image or text that can be read.
    """
    known = {} if known is None else known
    patterns, possible = erasure_patterns(len(experts), code.num_coded, seed=seed)
    first = next(iter(experts.values()))
    shard = (processes.rank, processes.world)
    names = list(experts)
    found: dict[tuple[int, ...], dict[int, Erasure]] = {pattern: {} for pattern in patterns}
    owned = [own_rows(test_set, code.labels, i) for i, test_set in enumerate(test_sets)]
    told = any(len(own) < test_sets[0].num_classes for own in owned)
    detections, damaged = [], []
    for i, (name, test_set) in enumerate(zip(experts, test_sets, strict=True)):
        mine = [pattern for pattern in patterns if i in pattern]
        parts: list[tuple[int, dict[Any, Tensor]]] = []
        read = test_set.batches(
            settings.batch_size, limit=settings.limit, seed=(seed, i), shard=shard
        )
        for number, rows in processes.bar(f"decode '{name}'", show=progress, unit="batch", of=read):
            x = fit_to(prepared_batch(rows, preprocessing), first)  # (B, ...)
            if (i, number) not in known:
                known[i, number] = [call(model, x).cpu() for model in experts.values()]
            f = known[i, number]
            c = {key: [call(model, x).cpu() for model in models] for key, models in coded.items()}
            part = _measure(i, mine, f, c, code, threshold)
            own = owned[i] if told else None
            for control, classes in answer_alone(i, next(iter(c.values())), code, own).items():
                part[(i,), control] = classes
            part["labels"] = torch.tensor([row.truth for row in rows])
            parts.append((number, part))
        parts = sorted(processes.gather(parts), key=lambda part: part[0])
        damaged.append((test_set.place, processes.gather(sorted(test_set.damaged))))
        if not parts:
            raise InputError(
                f"no {test_set.noun} in the split '{test_set.split}' of dataset '{test_set.name}' "
                f"can be {test_set.readable}: download it again"
            )
        pooled = {key: torch.cat([p[key] for _, p in parts], dim=-1) for key in parts[0][1]}
        methods = (*coded, *CONTROLS)
        for pattern in mine:
            beside = [names[j] for j in pattern if j != i]
            runs = {method: networks_run(method, i, pattern, code) for method in methods}
            found[pattern][i] = _erasure(name, beside, pattern, runs, pooled)
        if threshold is not None:
            detections.append(_detection(name, pooled))
    erasures = [erasure for each in found.values() for erasure in each.values()]
    counted = Patterns(measured=len(patterns), possible=possible)
    return Measurement(erasures, counted, detections, count_damaged(damaged, test_sets[0].lacking))


def _erasure(
    name: str,
    beside: list[str],
    pattern: tuple[int, ...],
    methods: Mapping[str, int | None],
    pooled: Mapping[Any, Tensor],
) -> Erasure:
    """Score every method that answered for an expert in one pattern, given the networks it runs."""
    own, labels = pooled["expert"], pooled["labels"]
    return Erasure(
        missing=name,
        beside=beside,
        points=len(labels),
        expert_accuracy=(own == labels).double().mean().item(),
        scores={
            method: score(
                pooled[pattern, method],
                own,
                labels,
                pooled.get(("errors", method)),
                networks=networks,
            )
            for method, networks in methods.items()
            if (pattern, method) in pooled
        },
    )


def _detection(name: str, pooled: Mapping[Any, Tensor]) -> Detection:
    """Summarise the parity check on an expert's test set."""
    return Detection(
        expert=name,
        points=len(pooled["labels"]),
        false_alarms=pooled["alarms"].double().mean().item(),
        noticed=pooled["noticed"].double().mean().item(),
    )


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
    found: dict[Any, Tensor] = {"expert": predicted(code.labels, i, experts[i])}
    for pattern in patterns:
        for method, answers in decode_missing(pattern, experts, coded, code).items():
            found[pattern, method] = predicted(code.labels, i, answers[i])
    exact = list(code.encode([logits.double() for logits in experts]).values())
    for method, c in (*coded.items(), (OUTPUT_AVERAGE, exact)):
        found["errors", method] = coding_errors(experts, c, code)
    if threshold is not None:
        answers, first = dict(enumerate(experts)), dict(enumerate(next(iter(coded.values()))))
        found["alarms"] = code.residual(answers, first) > threshold
        answers[i] = _shifted(experts[i], None if code.labels is None else code.labels.rows[i])
        found["noticed"] = code.residual(answers, first) > threshold
    return found


def _shifted(logits: Tensor, rows: Sequence[int] | None) -> Tensor:
    """Shift an expert's own logits by one class."""
    if rows is None:
        return logits.roll(1, dims=1)
    moved = logits.clone()
    moved[:, rows] = logits[:, rows].roll(1, dims=1)
    return moved

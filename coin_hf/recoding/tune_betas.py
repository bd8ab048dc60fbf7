"""Tune betas to how often each expert is missing, for the least expected decoding error.

With one expert missing and one coded model, the decoded answer's squared error is
||f_c - sum_i beta_i f_i||^2 / beta_i^2. If the coding loss did not depend on beta, the expected
error sum_i p_i / beta_i^2 would be minimal for beta_i proportional to p_i^(1/3), in closed form. It
does depend on beta, so the search starts there, re-codes for each proposal, and measures it on the
samples.

Several coded models keep their code: column i of betas is multiplied by a positive s_i and the rows
are normalised again, which leaves every square submatrix invertible.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from coin_hf.encoding.context import RunContext
from coin_hf.encoding.inputs import draw_recorded
from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure.amplification import worst_amplification
from coin_hf.erasure.betas import Rows, written
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import LabelSets, predicted
from coin_hf.erasure.patterns import erasure_patterns
from coin_hf.errors import InputError
from coin_hf.evaluation.calibration import calibrate
from coin_hf.networks.logits import logits_of
from coin_hf.recoding.recode import recode

By = Literal["error", "agreement"]
FACTORS = (2.0, 1.5, 1.2)
"""Factors by which the search raises or lowers one expert's weight, coarse ones first."""


@dataclass(frozen=True)
class Proposal:
    """Betas, and the error of decoding with them on the samples."""

    betas: Rows
    error: float
    """Expected squared distance of the decoded logits, summed over the missing experts."""
    agreement: float
    """Expected share of missing answers that are decoded to the expert's own class."""
    worst_amplification: float

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "betas": written(self.betas)}


@dataclass(frozen=True)
class Tuning:
    """The result of `tune_betas`."""

    recorded: Proposal
    closed_form: Proposal
    best: Proposal
    tried: int
    """Number of re-codings measured."""

    def dump(self) -> dict[str, Any]:
        """Return it as plain data."""
        parts = {
            "recorded": self.recorded, "closed_form": self.closed_form, "best": self.best
        }  # fmt: skip
        return {**{name: part.dump() for name, part in parts.items()}, "tried": self.tried}


def tune_betas(
    target: str,
    missing: Sequence[float],
    *,
    by: By = "error",
    rounds: int = 3,
    progress: Callable[[str], None] | None = None,
) -> Tuning:
    """Propose betas for a coded repository, given how often each expert is missing.

    Args:
        target: A folder with a coded repository that holds Fishers.
        missing: For each expert the probability that it is missing, in (0, 1), independently of the
            others.
        by: The objective: `error` (expected squared error) or `agreement`.
        rounds: Number of step sizes in the search, at most 3.
        progress: Called with one line of text for each re-coding.

    Returns:
        The recorded betas, the closed form's and the best found, each measured on the samples.

    Raises:
        InputError: If the repository holds no Fishers, or there is not one probability for each
            expert.
    """
    ensemble = CodedEnsemble.from_pretrained(target, experts=True)
    experts, rows = ensemble.experts or (), ensemble.code.rows
    if len(missing) != len(experts) or not all(0 < p < 1 for p in missing):
        names = ", ".join(expert.name for expert in experts)
        raise InputError(
            f"give one probability between 0 and 1 for each expert ({names}), got "
            f"{', '.join(f'{p:g}' for p in missing)}"
        )
    recipe = ensemble.coin.recipe
    if recipe.refine:
        raise InputError(
            f"'{target}' was refined, and betas are tried by re-coding, which does not refine: "
            "encode it with `refine: []`, tune that, and encode again with the betas found"
        )
    inputs = draw_recorded(recipe, ensemble.coin, experts, RunContext()).inputs
    batch = recipe.evaluation.batch_size
    answers = [logits_of(expert.model, inputs, batch_size=batch).double() for expert in experts]
    found: dict[Rows, Proposal] = {}

    def measure(betas: Rows) -> Proposal:
        if betas not in found:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "coded"
                recode(target, place, betas=betas)
                coded = [
                    logits_of(each.model, inputs, batch_size=batch).double()
                    for each in CodedEnsemble.from_pretrained(place).coded_models
                ]
            found[betas] = _expected(betas, answers, coded, missing, ensemble.code.labels)
            if progress is not None:
                one = found[betas]
                progress(f"{written(betas)}: error {one.error:.4g}, agreement {one.agreement:.3f}")
        return found[betas]

    def key(one: Proposal) -> float:
        return one.error if by == "error" else -one.agreement

    recorded = measure(rows)
    scales = [p ** (1 / 3) for p in missing]
    closed = measure(_scaled(((1.0,) * len(missing),) if len(rows) == 1 else rows, scales))
    best = min((recorded, closed), key=key)
    for factor in FACTORS[:rounds]:
        for i in range(len(experts)):
            for step in (factor, 1 / factor):
                factors = [step if j == i else 1.0 for j in range(len(experts))]
                best = min((best, measure(_scaled(best.betas, factors))), key=key)
    return Tuning(recorded, closed, best, len(found))


def _scaled(rows: Rows, scales: Sequence[float]) -> Rows:
    """Multiply the columns, normalise the rows, round to four decimals."""
    made = []
    for row in rows:
        values = [beta * scale for beta, scale in zip(row, scales, strict=True)]
        rounded = [max(round(value / sum(values), 4), 1e-4) for value in values]
        largest = rounded.index(max(rounded))
        rounded[largest] = round(rounded[largest] + 1 - sum(rounded), 4)
        made.append(tuple(rounded))
    return tuple(made)


def _expected(
    rows: Rows,
    experts: Sequence[Tensor],
    coded: Sequence[Tensor],
    missing: Sequence[float],
    labels: LabelSets | None,
) -> Proposal:
    """Decode every pattern on the samples and weight it by its probability."""
    losses = calibrate(experts, coded, ErasureCode(rows, labels=labels)).losses
    code = ErasureCode(rows, losses=losses, labels=labels)
    error = agreement = total = 0.0
    for pattern in erasure_patterns(len(experts), code.num_coded)[0]:
        chance = prod(p if i in pattern else 1 - p for i, p in enumerate(missing))
        there = {i: f for i, f in enumerate(experts) if i not in pattern}
        for i, answer in code.decode(there, dict(enumerate(coded))).items():
            error += chance * (answer - experts[i]).square().sum(1).mean().item()
            same = predicted(code.labels, i, answer) == predicted(code.labels, i, experts[i])
            agreement += chance * torch.mean(same.double()).item()
            total += chance
    return Proposal(rows, error, agreement / total, worst_amplification(rows))

"""Measurements of coded models: scores, erasures, choices, refinements, costs."""

from collections.abc import Sequence
from typing import Literal

from coin_hf.records.record import Record


class Score(Record):
    """The quality of one method's answers for one missing expert."""

    nda: float | None
    """Normalized decoding accuracy, percent; None without labels or for an expert never right."""
    decoded_accuracy: float | None
    """Share of decoded answers that are right; None without labels."""
    agreement: float
    """Share of inputs for which decoded and expert answer agree."""
    coding_loss: float | None
    """Mean over inputs and coded models of ||f_c - sum_i beta_ci f_i||^2, eq. (5) of
    arXiv:2409.01420; None if nothing is coded."""
    networks: int | None = None
    """Networks run for one such answer: N where one of N is decoded with M = 1, 1 for a coded model
    alone; None for the output average, which nobody can compute, and in older results."""


class Erasure(Record):
    """One missing expert, measured on its own test set: its accuracy and each method's score."""

    missing: str
    beside: list[str]
    """The other experts missing at the same time; all M coded models answer."""
    points: int
    """Number of test inputs."""
    expert_accuracy: float
    """Share of the expert's own answers that are right."""
    scores: dict[str, Score]
    """Method -> score: the run's own coded models under the coder's name, and the controls; a coded
    model alone only where a single expert is missing, as it does not ask the others."""


class Detection(Record):
    """Accuracy of the parity check on one expert's test set, with all experts answering."""

    expert: str
    points: int
    false_alarms: float
    """Share of intact answers flagged as corrupted."""
    noticed: float
    """Share flagged when this expert's logits are shifted by one class."""


class Patterns(Record):
    """The numbers of measured and possible sets of missing experts."""

    measured: int = 0
    possible: int = 0


class Calibration(Record):
    """Coding losses and the corruption threshold, measured on the samples, without labels."""

    losses: list[float]
    """Coding loss of each coded model on the samples, shape (M,), in squared logits: decoding
    weights a coded answer by its inverse."""
    threshold: float
    """Parity residual above which complete answers count as corrupted."""
    samples: int
    """Number of samples used."""
    quantile: float
    """Share of the samples whose residual lies below the threshold."""


Scores = dict[str, int | float]
"""A candidate's value, the number of samples it was tried on, and its measures there."""


class Choice(Record):
    """How a coder's hyperparameter was chosen, and the scores of every candidate."""

    key: str
    """Its key in the recipe: `lam` or `alpha`."""
    by: Literal["nda", "agreement"]
    """The criterion, on the samples, averaged over the missing experts."""
    samples: int
    """Number of samples that the best candidates were tried on."""
    scores: list[Scores]
    """Per candidate: value, samples (how many it was tried on; absent if all), nda (percent, if
    there are labels), agreement, coding_loss."""

    @property
    def finalists(self) -> list[Scores]:
        """The candidates that were tried on all samples: all of them, unless they raced."""
        return [one for one in self.scores if one.get("samples", self.samples) == self.samples]

    @property
    def value(self) -> float:
        """The best of `finalists`; ties are broken by smaller coding loss, then by order."""
        return max(self.finalists, key=lambda one: (one[self.by], -one["coding_loss"]))["value"]

    @property
    def runs(self) -> int:
        """The number of samples run through each coded model, over all candidates."""
        return sum(int(one.get("samples", self.samples)) for one in self.scores)


class Refinement(Record):
    """The effect of one `refine` step on one coded model."""

    step: str
    coded: int
    """Index of the coded model."""
    before: float | None
    """Coding loss of the held-out samples before the step; None if not finite. They are held out
    from the steps; the coder has seen them unless `samples.held_out` excludes them."""
    after: float | None
    """The same after the step."""
    kept: bool
    """Whether the step was kept: `after` is smaller by more than rounding."""
    samples: int
    """Number of inputs it was fitted to, augmented ones included."""
    held_out: int
    """Number of held-out samples that judged it."""
    seconds: float


class Passes(Record):
    """Samples passed through one network; backward counts each cotangent."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        """Add two costs."""
        return Passes(forward=self.forward + other.forward, backward=self.backward + other.backward)


def mean_nda(erasures: Sequence[Erasure]) -> dict[int, dict[str, float | None]]:
    """Average NDA over erasures.

    Args:
        erasures: The erasures.

    Returns:
        Percent by number of experts missing at once, then by method; the key 1 is always present.
        None if an expert was never right or there are no labels.
    """
    by_size: dict[int, list[Erasure]] = {1: []}
    for erasure in erasures:
        by_size.setdefault(1 + len(erasure.beside), []).append(erasure)
    return {size: _means(found) for size, found in sorted(by_size.items())}


def _means(erasures: Sequence[Erasure]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for method in dict.fromkeys(method for erasure in erasures for method in erasure.scores):
        ndas = [e.scores[method].nda for e in erasures if method in e.scores]
        known = [one for one in ndas if one is not None]
        means[method] = sum(known) / len(known) if len(known) == len(ndas) else None
    return means

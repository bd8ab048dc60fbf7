"""What is measured of coded models: scores, erasures, choices, refinements, costs."""

from collections.abc import Sequence
from typing import Literal

from coin_hf.records.record import Record


class Score(Record):
    """How well one method answers for one missing expert."""

    nda: float | None
    """Normalized decoding accuracy, percent; None if the expert is never right or no labels."""
    decoded_accuracy: float | None
    """Share of decoded answers that are right; None without labels."""
    agreement: float
    """Share of inputs for which decoded and expert answer agree."""
    coding_loss: float | None
    """Mean over inputs and coded models of ||f_c - sum_i beta_ci f_i||^2, eq. (5) of
    arXiv:2409.01420; None where nothing is coded."""


class Erasure(Record):
    """One missing expert, measured on its own test set: its accuracy and each method's score."""

    missing: str
    beside: list[str]
    """The experts that are missing at the same time; all M coded models answer."""
    points: int
    """Test inputs."""
    expert_accuracy: float
    """Share of the expert's own answers that are right."""
    scores: dict[str, Score]
    """By method: the coder's name for the run's own coded models, and the controls."""


class Detection(Record):
    """How the parity check does on one expert's test set, with all experts answering."""

    expert: str
    points: int
    false_alarms: float
    """Share of intact answers that it takes for corrupted."""
    noticed: float
    """Share that it notices where this expert's logits are shifted by one class."""


class Patterns(Record):
    """How many sets of missing experts were measured, and of how many."""

    measured: int = 0
    possible: int = 0


class Calibration(Record):
    """What the samples say of the coded models; no label and no test data enter."""

    losses: list[float]
    """Coding loss of each coded model on the samples, shape (M,), in squared logits: decoding
    weighs a coded answer by its inverse."""
    threshold: float
    """Parity residual above which complete answers count as corrupted."""
    samples: int
    """How many samples decided."""
    quantile: float
    """Share of the samples whose residual lies below the threshold."""


class Choice(Record):
    """How a coder's hyperparameter was chosen, and what every candidate scored."""

    key: str
    """What the recipe calls it: `lam` or `alpha`."""
    by: Literal["nda", "agreement"]
    """The measure, on the samples, averaged over the missing experts."""
    samples: int
    """How many samples decided."""
    scores: list[dict[str, float]]
    """For each candidate: value, nda (percent, where there are labels), agreement, coding_loss."""

    @property
    def value(self) -> float:
        """The best one; equal ones are told apart by the smaller coding loss, then by order."""
        return max(self.scores, key=lambda one: (one[self.by], -one["coding_loss"]))["value"]


class Refinement(Record):
    """What one step of `refine` did to one coded model."""

    step: str
    coded: int
    """Number of the coded model."""
    before: float | None
    """Coding loss of the held-out samples before the step; None where it is not finite. They are
    held out from the steps; the coder has seen them unless `samples.held_out` sets them aside."""
    after: float | None
    """The same after it."""
    kept: bool
    """Whether the step stays, as it does where `after` is smaller by more than rounding."""
    samples: int
    """How many inputs it was fitted to, copies included."""
    held_out: int
    """How many judged it."""
    seconds: float


class Passes(Record):
    """Samples that went through one network; backward counts each vector pulled back."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        """Add up two costs."""
        return Passes(forward=self.forward + other.forward, backward=self.backward + other.backward)


def mean_nda(erasures: Sequence[Erasure]) -> dict[int, dict[str, float | None]]:
    """Average NDA over erasures.

    Args:
        erasures: The erasures.

    Returns:
        Percent by the number of experts missing at once and by method, always with the key 1; None
        where an expert was never right or there are no labels.
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

"""The content of result.json: all measurements of a run and their settings."""

from typing import Any

from pydantic import Field

from coin_hf.recipe.blocks import SamplesBlock
from coin_hf.records.coin import ExpertRecord, RecodedFrom, Settings
from coin_hf.records.measurements import (
    Calibration,
    Choice,
    Detection,
    Erasure,
    Passes,
    Patterns,
    Refinement,
)
from coin_hf.records.record import Record


class LicensedExpert(ExpertRecord):
    """One expert and the licence that its card declares, if any."""

    license: str | None


class CountedSamples(SamplesBlock):
    """The samples and their number."""

    count: int
    """P."""


class Run(Record):
    """The machine, time and cost of a run."""

    device: str
    processes: int
    """The number that ran."""
    precision: str | None = None
    """The experts' dtype, in which all networks ran."""
    seconds: dict[str, float]
    """Wall time by step."""
    passes: Passes | None = None
    history: list[dict[str, Any]] | None = None
    """The training log, one entry per epoch, for coders that train."""
    versions: dict[str, str]
    """Versions of the packages that the run depends on."""


class ResultRecord(Settings):
    """The content of result.json."""

    architecture: str
    num_classes: int
    """K."""
    choice: Choice | None
    """How the coder's hyperparameter was chosen, if it was."""
    refinements: list[Refinement] | None = None
    experts: list[LicensedExpert]
    samples: CountedSamples
    erasures: list[Erasure]
    """One per pattern and expert missing in it, single erasures first; empty if not measured."""
    patterns: Patterns = Patterns()
    mean_nda: dict[str, float | None]
    """Percent by method, over the single erasures; None if an expert was never right."""
    mean_nda_several: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """The same by number of experts missing at once, from 2."""
    damaged: dict[str, int] | None = None
    """Rows left out because they are damaged or missing, by `dataset:split`; None if none."""
    detection: list[Detection] = Field(default_factory=list)
    calibration: Calibration | None = None
    run: Run
    recoded_from: RecodedFrom | None = None

    @property
    def steps(self) -> list[str]:
        """The steps of `refine` that were kept, each once."""
        return list(dict.fromkeys(each.step for each in self.refinements or () if each.kept))

    @property
    def singles(self) -> list[Erasure]:
        """The erasures of a single expert."""
        return [erasure for erasure in self.erasures if not erasure.beside]

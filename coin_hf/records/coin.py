"""The content of coin.json: what is needed to decode, repeat and re-code a run."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import model_validator
from typing_extensions import Self

from coin_hf.erasure.betas import rows_of
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import (
    AugmentBlock,
    Classes,
    Coder,
    DatasetBlock,
    DistillationBlock,
    DType,
    EvaluationBlock,
    FisherBlock,
    RefineBlock,
    RegMeanBlock,
    SamplesBlock,
    TaskArithmeticBlock,
)
from coin_hf.records.measurements import Calibration
from coin_hf.records.record import Record

FORMAT = 1
"""Version of coin.json and result.json; readers reject an unknown one."""
SETTINGS = ("task_arithmetic", "regmean", "distillation")
"""Settings blocks of the coders; only the used coder's is recorded."""
REFINING = ("refine", "augment")
"""Keys that are recorded only if they affected the coded models."""

Betas = list[float] | list[list[float]]


class ClassOrder(Record):
    """The rows of an expert's classes, where they are not those of its own head."""

    rows: list[int]
    """The row of the logits for each of its own classes: all different."""
    tensors: list[str]
    """Its head, whose rows are placed: names of parameters and buffers."""
    width: int | None = None
    """K, where it has fewer classes itself; by default `rows` is a permutation of all."""

    @model_validator(mode="after")
    def _different(self) -> "ClassOrder":
        if self.width is None and sorted(self.rows) != list(range(len(self.rows))):
            raise ValueError(f"rows must hold each of 0 to {len(self.rows) - 1} once")
        if len(set(self.rows)) < len(self.rows) or any(
            not 0 <= row < self.count for row in self.rows
        ):
            raise ValueError(f"rows must hold different numbers of 0 to {self.count - 1}")
        return self

    @property
    def count(self) -> int:
        """K, the number of rows."""
        return len(self.rows) if self.width is None else self.width


class ExpertRecord(Record):
    """One expert: its location, revision and dataset."""

    model: str
    """Hub id or folder."""
    dataset: str
    """Its dataset, a key of `datasets`."""
    revision: str
    """Commit SHA, or `sha256:...` of the folder."""
    name: str
    library: Literal["timm", "transformers"]
    labels: list[str] | None = None
    """The names of its own classes in its own order, where they are given or have other rows."""
    class_order: ClassOrder | None = None
    """The rows of its classes, if they are not its own head's."""
    base: str | None = None
    """Hub id or folder of its base, if it is a PEFT adapter."""
    base_revision: str | None = None
    """The base's commit SHA, or `sha256:...` of the folder."""

    def moved(self, change: Callable[[str], str]) -> Self:
        """Change the locations of the expert and of its base.

        Args:
            change: Old location -> new location.

        Returns:
            The changed record.
        """
        places = {"model": self.model, "base": self.base}
        return self.model_copy(update={k: change(v) for k, v in places.items() if v is not None})


def label_sets(orders: Sequence[ClassOrder | None]) -> LabelSets | None:
    """Return the label sets of experts.

    Args:
        orders: The rows of each expert's classes; None where they are its own head's.

    Returns:
        The rows that each has; None where every expert has all.
    """
    width = max((order.count for order in orders if order is not None), default=0)
    if all(order is None or len(order.rows) == width for order in orders):
        return None
    every = tuple(range(width))
    rows = tuple(every if order is None else tuple(order.rows) for order in orders)
    return LabelSets(rows=rows, count=width)


class DrawnSamples(SamplesBlock):
    """The samples and their rows."""

    rows: dict[str, list[int]]
    """Draw -> its rows: positions in the dataset's split."""


class RecodedFrom(Record):
    """The code before re-coding."""

    betas: Betas
    lam: float | None
    experts: list[str]


class Settings(Record):
    """How the coded models were made: the fields common to coin.json and result.json."""

    format: Literal[1]
    library: Literal["timm", "transformers"]
    coder: Coder
    betas: Betas
    """Coding weights, shape (N,) or (M, N)."""
    lam: float | None
    """The penalty lambda of COIN; None for other coders."""
    dtype: DType | None = None
    """The dtype that the recipe asks for, if any."""
    task_arithmetic: TaskArithmeticBlock | None = None
    regmean: RegMeanBlock | None = None
    distillation: DistillationBlock | None = None
    refine: tuple[RefineBlock, ...] | None = None
    """The steps after the coder, if any."""
    augment: AugmentBlock | None = None
    """The augmentation of the samples, if used."""
    datasets: dict[str, DatasetBlock]
    fisher: FisherBlock
    evaluation: EvaluationBlock

    task: Literal["text-classification"] | None = None
    """What the networks classify, where it is not images."""

    experts: Sequence[ExpertRecord]
    classes: Classes | None = None
    """How the experts' classes were placed, if the recipe says so."""

    @property
    def label_sets(self) -> LabelSets | None:
        """The logits that each expert has; None if all have all."""
        return label_sets([expert.class_order for expert in self.experts])

    def moved(self, change: Callable[[str], str]) -> Self:
        """Change the locations of experts, foundation and datasets.

        Args:
            change: Old location -> new location.

        Returns:
            The changed record.
        """
        moved: dict[str, Any] = {
            "experts": [expert.moved(change) for expert in self.experts],
            "datasets": {
                key: block.model_copy(update={"path": change(block.path)})
                for key, block in self.datasets.items()
            },
        }
        if self.task_arithmetic is not None:
            foundation = change(self.task_arithmetic.foundation)
            moved["task_arithmetic"] = self.task_arithmetic.model_copy(
                update={"foundation": foundation}
            )
        return self.model_copy(update=moved)


class CoinRecord(Settings):
    """The content of coin.json."""

    experts: list[ExpertRecord]
    samples: DrawnSamples
    calibration: Calibration | None = None
    """None if nothing was measured since re-coding."""
    versions: dict[str, str]
    """Versions of the packages that the run depends on."""
    recoded_from: RecodedFrom | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "CoinRecord":
        losses = None if self.calibration is None else self.calibration.losses
        if losses is not None and len(losses) != len(rows_of(self.betas)):
            raise ValueError(
                f"calibration has {len(losses)} losses for {len(rows_of(self.betas))} coded models"
            )
        if list(self.samples.rows) != list(self.draws):
            raise ValueError(
                f"samples.rows are of {', '.join(self.samples.rows)}, but the draws are "
                f"{', '.join(self.draws)}"
            )
        return self

    @property
    def draws(self) -> dict[str, str]:
        """The draws of samples: name -> dataset."""
        return self.samples.draws or {expert.name: expert.dataset for expert in self.experts}

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run with the lambda and revisions used, without output and hub.

        Raises:
            InputError: If the record is not a valid recipe.
        """
        said = self.dump()
        keys = ("coder", "classes", "betas", "lam", "dtype", *SETTINGS, *REFINING, "experts",
                "datasets",
                "samples", "fisher", "evaluation")  # fmt: skip
        data = {key: said[key] for key in keys if said.get(key) is not None}
        data["samples"].pop("rows")
        data.setdefault("refine", [])  # what was not refined was not to be
        for expert in data["experts"]:
            expert.pop("class_order", None)  # found again where the recipe is encoded
        return Recipe.from_dict(data, source="coin.json")

"""The blocks of a recipe: what each key means, its default and its limits."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Library = Literal["auto", "timm", "transformers"]
Coder = Literal["coin", "averaging", "task_arithmetic", "regmean", "distillation"]
Step = Literal["layerwise", "head"]
Classes = Literal["name", "position", "separate"]
DType = Literal["float32", "bfloat16", "float16", "float64"]


def _number(value: Any) -> Any:
    """Reject booleans, which Python counts as numbers; accept text: YAML reads `1e-3` as text."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "not a number")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[StrictInt, Field(ge=0, le=2**63 - 1)]
Lam = Annotated[Number, Field(allow_inf_nan=False, ge=0, le=1e30)] | Literal["auto"]


def shape_of(betas: Any) -> str:
    """Tell one row of betas from several, so that errors are reported for the intended form."""
    several = isinstance(betas, list | tuple) and betas and isinstance(betas[0], list | tuple)
    return "rows" if several else "row"


Row = tuple[Number, ...]
Weights = Annotated[
    Annotated[Row, Tag("row")] | Annotated[tuple[Row, ...], Tag("rows")], Discriminator(shape_of)
]


class Block(BaseModel):
    """A part of the recipe: frozen, closed to unknown keys; absent values are not written."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {key: value for key, value in found.items() if value is not None}


class ExpertBlock(Block):
    """One expert: its weights and its dataset."""

    model: str
    """Hub id, or path of a folder with `config.json` and `model.safetensors`."""
    dataset: str
    """Its dataset, a key of `datasets`: samples are drawn from it and NDA is measured on it."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository, or `sha256:...` of a folder; pinned when run."""
    name: str | None = None
    """Short name in tables and cards; by default the last part of `model`."""
    library: Library = "auto"
    """Which library builds the network; `auto` reads it from `config.json`."""
    labels: Annotated[tuple[StrictStr, ...], Field(min_length=1)] | None = None
    """The names of its classes, in its own order, in place of those it records."""
    base: str | None = None
    """Hub id or folder of the network that `model` is a PEFT adapter of; by default the one that
    the adapter names."""
    base_revision: str | None = None
    """Branch, tag or commit of the base, or `sha256:...` of a folder; pinned when run."""

    @property
    def label(self) -> str:
        """The expert's name in tables and messages."""
        return self.name or Path(self.model).name


class DatasetBlock(Block):
    """Images or texts with labels, from the Hub or a folder."""

    path: str
    """Hub id, folder of parquet, text or image files, or folder written by `save_to_disk`."""
    config: str | None = None
    """Configuration of a Hub dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of the Hub dataset, or `sha256:...` of a folder; pinned when run."""
    split: str = "train"
    """Split from which samples are drawn."""
    image: str | None = None
    """Image column; by default the one column of type `Image`."""
    text: StrictStr | Annotated[tuple[StrictStr, ...], Field(min_length=1, max_length=2)] | None = (
        None
    )
    """Text column, or a list of two for pairs of texts; by default the one column of text."""
    max_length: Count | None = None
    """Tokens that texts are cut to; by default as many as tokenizer and network take."""
    label: str | None = None
    """Label column; by default the one column of type `ClassLabel`."""
    labels: Annotated[tuple[StrictInt | StrictStr, ...], Field(min_length=1)] | None = None
    """Keep only rows with these labels (numbers or class names); by default all."""
    labels_by: Literal["position"] | None = None
    """`position`: class k of the dataset is class k of the expert, whatever they are called. By
    default classes are matched by name where both sides have names."""
    label_map: dict[str, str] | None = Field(default=None, min_length=1)
    """Class names of the dataset and the expert's names for them, where these differ."""
    skip_damaged: bool = False
    """Leave out rows whose images cannot be decoded or whose texts are missing, and count them in
    the result; by default the run stops with a sentence that names the row."""
    streaming: bool = False
    """Stream the rows instead of downloading the split first."""


class SamplesBlock(Block):
    """The P unlabeled inputs used to compute Fishers and choose lambda."""

    per_expert: Count = 100
    """P', the number of samples of each draw: P = P' * number of draws, by default one for each
    expert."""
    seed: Seed = 0
    """Seed of the draw."""
    held_out: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each expert's samples held out from the Fisher, used only to choose lambda."""
    draws: dict[str, str] | None = Field(default=None, min_length=1)
    """The draws, `name: dataset`, P' rows each, in order; by default one per expert, with its name
    and from its dataset. Re-coding keeps the draws when experts join or leave."""


class FisherBlock(Block):
    """How the Fisher is computed."""

    estimator: Literal["exact", "probe", "auto"] = "auto"
    """`exact`; `probe`, at a cost independent of the number of classes; `auto`: exact below
    10 classes, `probe` from there. The paper's is `exact`."""
    probes: Count = 4
    """Random directions of the logits per sample; used by `probe` only."""
    batch_size: Count | None = None
    """Samples per pass; by default as many as fit in memory."""
    save: StrictBool | Literal["half"] = False
    """Save the experts' Fishers with the coded model, so that `coin-hf recode` can change it
    without data; `half` saves them in 16 bits and codes with the saved values."""


class TaskArithmeticBlock(Block):
    """theta_0 + alpha sum_i N beta_i (theta_i - theta_0)."""

    foundation: str
    """Hub id or folder of theta_0, from which the experts were fine-tuned; with the same head."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository, or `sha256:...` of a folder; pinned when run."""
    alpha: Annotated[Number, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Scale of the task vectors; `auto` chooses from 0.05, 0.10 ... 1.0 on the samples."""


class RegMeanBlock(Block):
    """Least squares, map by map, on the experts' own inputs."""

    mode: Literal["linear", "conv"] = "linear"
    """Maps to merge: `linear`, fully connected layers; `conv`, dense convolutions as well."""
    scale: Annotated[Number, Field(ge=0, le=1)] = 0.9
    """Factor on the off-diagonals of the Gram matrices."""


class DistillationBlock(Block):
    """AdamW training on the coding loss, starting from the averaged parameters."""

    epochs: Count = 20
    """Passes over the samples."""
    lr: Annotated[Number, Field(gt=0, le=1e30, allow_inf_nan=False)] = 1e-5
    """Learning rate."""
    batch_size: Count = 8
    """Samples per step, over all processes."""
    weight_decay: Annotated[Number, Field(ge=0, le=1e30, allow_inf_nan=False)] = 0.1
    """Weight decay."""


class AugmentBlock(Block):
    """Augmented samples for RegMean, distillation and refinement, never for Fishers or choices."""

    copies: Annotated[StrictInt, Field(ge=1, le=1000)] = 4
    """Augmented copies per sample, besides the original."""
    transforms: Annotated[tuple[Literal["shift", "flip", "mixup"], ...], Field(min_length=1)] = (
        "shift",
        "mixup",
    )
    """Transforms applied to each copy; leave out `flip` where left and right differ in meaning."""


class RefineBlock(Block):
    """A step that improves the coded parameters without training."""

    step: Step
    """Which step."""
    strength: Annotated[Number, Field(gt=0, le=1e30, allow_inf_nan=False)] | Literal["auto"] = (
        "auto"
    )
    """Ridge strength towards the current weights, relative to the mean square of the step's inputs;
    `auto` chooses it."""
    memory: Annotated[Number, Field(gt=0, le=2**20)] | Literal["auto"] = "auto"
    """GiB of host memory that `layerwise` may use beyond the networks and the samples; what does
    not fit waits in a temporary file. `auto` takes a quarter of what is free."""

    @model_validator(mode="after")
    def _used(self) -> "RefineBlock":
        if self.step == "head" and self.memory != "auto":
            raise ValueError("`memory` limits the step `layerwise`, not `head`: leave it out")
        return self


def named(key: str) -> Callable[[Any], Any]:
    """Read names in a list as blocks.

    Args:
        key: The key that a name stands for.

    Returns:
        A validator that makes `{key: name}` of each name.
    """

    def read(data: Any) -> Any:
        if not isinstance(data, list | tuple):
            return data
        return [{key: each} if isinstance(each, str) else each for each in data]

    return read


Steps = Annotated[
    tuple[RefineBlock, ...],
    BeforeValidator(named("step"), json_schema_input_type=tuple[Step | RefineBlock, ...]),
]


def _auto(data: Any) -> Any:
    """Read the word `auto` as what it stands for: nothing said."""
    return None if data == "auto" else data


AutoSteps = Annotated[
    Steps | None,
    BeforeValidator(
        _auto, json_schema_input_type=Literal["auto"] | tuple[Step | RefineBlock, ...] | None
    ),
]


class EvaluationBlock(Block):
    """The data on which NDA is measured; never used for a choice."""

    split: str = "test"
    """Split of each expert's dataset."""
    batch_size: Count = 64
    """Inputs per forward pass."""
    limit: Count | None = None
    """Most inputs per dataset, drawn with the samples' seed; by default all."""


class HubBlock(Block):
    """The destination of `encode --push`."""

    repo: str
    """Hub id of the coded model."""
    private: bool = False
    """Create the repository private."""
    revision: str | None = None
    """Branch to push to; by default the main one."""
    create_pr: bool = False
    """Open a pull request instead of committing."""
    commit_message: str = "Add coded model"
    """First line of the commit message."""
    handler: bool = False
    """Also push `handler.py`, by which Inference Endpoints serve one of its networks each."""


def set_aside(share: float, count: int) -> int:
    """Return how many samples of a draw `samples.held_out` holds out from fitting.

    Args:
        share: The share, in [0, 1).
        count: Samples of the draw.

    Returns:
        share * count, rounded down after removing floating-point errors: 0.29 * 100 gives
        28.999999999999996 and counts as 29.
    """
    return int(round(share * count, 9))

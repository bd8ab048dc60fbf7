"""The recipe: everything that determines a coded model, validated and frozen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field, StrictBool, StrictInt, ValidationError, model_validator

from coin_hf.erasure.betas import check_betas, rows_of, written
from coin_hf.errors import InputError, shown
from coin_hf.recipe.blocks import (
    AugmentBlock,
    AutoSteps,
    Block,
    Classes,
    Coder,
    DatasetBlock,
    DistillationBlock,
    DType,
    EvaluationBlock,
    ExpertBlock,
    FisherBlock,
    HubBlock,
    Lam,
    RegMeanBlock,
    Row,
    SamplesBlock,
    TaskArithmeticBlock,
    Weights,
    shape_of,
)
from coin_hf.recipe.coding_weights import without_rounding
from coin_hf.recipe.compare_blocks import CompareBlock, Contender
from coin_hf.recipe.messages import did_you_mean, sentences
from coin_hf.recipe.yaml_file import apply_override, read_yaml

LONGEST_NAME = 200
"""Bytes of an expert's name as a file name: systems allow 255 with what is added."""


class Recipe(Block):
    """Everything that determines a coded model.

    Read one with `from_yaml`. A recipe is data: it opens no file and contacts no server.
    """

    experts: tuple[ExpertBlock, ...] = Field(min_length=2)
    """The experts, in order; at least two."""
    datasets: dict[str, DatasetBlock] = Field(min_length=1)
    """The experts' datasets, keyed by a name of your choice."""
    betas: Weights | None = Field(default=None, validate_default=True)
    """Coding weights, one per expert, positive, summing to 1; by default all equal. For several
    coded models one such list each; all square submatrices must be invertible."""
    coded: Annotated[StrictInt, Field(ge=1)] | None = None
    """Number of coded models, instead of `betas`: their betas are designed for low error
    amplification, as `coin-hf design` shows."""
    classes: Classes | None = None
    """Which logits of the experts are coded together: `name`, those of classes of one name, so
    that experts may have different labels; `position`, class k with class k; `separate`, none. By
    default by name, but by position where all experts number as many classes and none has a name
    that another gives to a class of another number."""
    coder: Coder = "coin"
    """How the coded parameters are computed: `coin` is Fisher averaging, arXiv:2409.01420; the
    others are alternatives, with their settings in the block of that name."""
    dtype: DType | None = None
    """The floating dtype in which the experts run and the coded models are saved; by default the
    experts' own, the widest where they differ."""
    lam: Lam = "auto"
    """Penalty lambda, one for all coded models; `auto` chooses from 1e-5 ... 1 on the samples."""
    race: StrictBool = True
    """Choose `lam` and `alpha` by a race: all candidates on few samples, the best third on all."""
    samples: SamplesBlock = SamplesBlock()
    """The unlabeled inputs."""
    fisher: FisherBlock = FisherBlock()
    """Estimator, batch size, and whether the Fishers are saved."""
    task_arithmetic: TaskArithmeticBlock | None = None
    """Settings of the coder `task_arithmetic`, which needs them."""
    regmean: RegMeanBlock = RegMeanBlock()
    """Settings of the coder `regmean`."""
    distillation: DistillationBlock = DistillationBlock()
    """Settings of the coder `distillation`."""
    refine: AutoSteps = None
    """Steps that improve the coder's result, in order: `layerwise`, `head`, or blocks `{step,
    strength, memory}`; `[]` for none, as in the paper. Each is kept only if it reduces the coding
    loss of samples held out from it. By default (`auto`) `layerwise` behind `coin` and `averaging`,
    with four copies of each image, where there are 100 samples or more; in `compare`, none."""
    augment: AugmentBlock | None = None
    """Augmented samples for RegMean, distillation and refinement; by default none."""
    compare: CompareBlock = CompareBlock()
    """Settings of `coin-hf compare`."""
    evaluation: EvaluationBlock = EvaluationBlock()
    """The data on which NDA is measured."""
    output: str | None = None
    """Folder for the coded model; must be new or empty."""
    hub: HubBlock | None = None
    """The destination of `encode --push`."""

    @model_validator(mode="before")
    @classmethod
    def _default_betas(cls, data: Any) -> Any:
        """Fill in betas, and drop `coded`, which they make redundant."""
        if not isinstance(data, Mapping):
            return data
        experts, betas, coded = (data.get(key) for key in ("experts", "betas", "coded"))
        if not isinstance(experts, Sequence) or isinstance(experts, str) or not experts:
            return data
        coded = 1 if coded is None else coded
        if type(coded) is not int or coded < 1:
            return data
        rest = {key: value for key, value in data.items() if key not in ("betas", "coded")}
        if betas is None:
            if coded == 1 or len(experts) < 2:
                return {**rest, "betas": [1 / len(experts)] * len(experts)}
            from coin_hf.erasure.design import design  # plain recipes need no linear algebra

            return {**rest, "betas": written(design(len(experts), coded))}
        rows = len(betas) if shape_of(betas) == "rows" else 1
        if "coded" in data and data["coded"] is not None and rows != coded:
            raise ValueError(
                f"'coded' asks for {coded} coded models, but 'betas' has {rows} rows: leave one out"
            )
        return {**rest, "betas": without_rounding(betas)}

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        check_betas(self.coding_weights, len(self.experts))
        if shape_of(self.coding_weights) == "rows":
            from coin_hf.erasure.amplification import (
                check_code,  # one coded model needs no linear algebra
            )

            check_code(rows_of(self.coding_weights))
        names = [expert.label for expert in self.experts]
        for name in (*names, *self.datasets, *self.draws):
            if not name.isprintable() or not name.strip():
                raise ValueError(
                    f"the name {shown(name)} is empty or holds control characters: give another one"
                )
        if self.fisher.save:
            for name in names:
                if len(quote(name, safe=" ")) > LONGEST_NAME:
                    raise ValueError(
                        f"expert '{name}' has too long a name for the file of its Fisher: give it "
                        "a shorter `name`"
                    )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two experts are named '{name}': give each its own `name` under `experts`"
                )
        for expert in self.experts:
            if expert.dataset not in self.datasets:
                raise ValueError(
                    f"expert '{expert.label}' names the dataset '{expert.dataset}', but "
                    f"`datasets` holds {', '.join(self.datasets)}"
                    f"{did_you_mean(expert.dataset, self.datasets)}"
                )
        for name, key in self.draws.items():
            if key not in self.datasets:
                raise ValueError(
                    f"the draw '{name}' names the dataset '{key}', but `datasets` holds "
                    f"{', '.join(self.datasets)}{did_you_mean(key, self.datasets)}"
                )
        self._check_coders()
        for key, dataset in self.datasets.items():
            if dataset.split == self.evaluation.split:
                raise ValueError(
                    f"dataset '{key}' draws its samples from the split '{dataset.split}' on which "
                    "NDA is measured: choose another `split`, or another `evaluation.split`"
                )
        return self

    def _check_coders(self) -> None:
        if self.fisher.save and self.coder != "coin":
            raise ValueError(
                f"fisher.save: the coder '{self.coder}' computes no Fishers: leave `save` out, or "
                "take the coder 'coin'"
            )
        labels = [contender.label for contender in self.contenders]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"two entries of compare.coders are named '{label}': give each its own `name`"
                )
        for recipe in (self, *(self.with_coder(contender) for contender in self.contenders)):
            if recipe.coder == "task_arithmetic":
                recipe.foundation  # noqa: B018  # raises if there is none

    @property
    def foundation(self) -> TaskArithmeticBlock:
        """The settings of task arithmetic.

        Raises:
            InputError: If the recipe has none.
        """
        if self.task_arithmetic is None:
            raise InputError(
                "the coder 'task_arithmetic' needs the parameters from which the experts were "
                "fine-tuned: add `task_arithmetic: {foundation: HUB ID OR FOLDER}`"
            )
        return self.task_arithmetic

    @property
    def enlarges(self) -> bool:
        """Whether the coder or a step uses the augmented samples."""
        takes = bool(self.refine) or self.coder in ("regmean", "distillation")
        return self.augment is not None and takes

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The coders that `compare` compares."""
        if self.compare.coders is not None:
            return self.compare.coders
        known = ("task_arithmetic",) if self.task_arithmetic else ()
        names = ("averaging", *known, "regmean", "distillation", "coin")
        return tuple(Contender(coder=name) for name in names)

    def with_coder(self, contender: Contender) -> "Recipe":
        """Return the recipe with a contender's coder and settings."""
        changes = {
            key: value
            for key in Contender.model_fields
            if key != "name" and (value := getattr(contender, key)) is not None
        }
        if self.refine is None and contender.refine is None:  # a coder's name means it alone
            changes["refine"] = ()
        if contender.augment is None and "augment" in contender.model_fields_set:
            changes["augment"] = None
        return self.model_copy(update=changes)

    @property
    def coding_weights(self) -> Row | tuple[Row, ...]:
        """The betas, shape (N,) for one coded model or (M, N)."""
        if self.betas is None:
            return (1 / len(self.experts),) * len(self.experts)
        return self.betas

    @property
    def draws(self) -> dict[str, str]:
        """The draws of samples: name -> dataset."""
        return self.samples.draws or {expert.label: expert.dataset for expert in self.experts}

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe file.

        Args:
            path: The YAML file.
            overrides: `key.path=value` strings applied to it; a number in the path selects a list
                item (`experts.0.revision=main`), and the value is read as YAML.

        Returns:
            The recipe with defaults filled in.

        Raises:
            InputError: If the file cannot be read, is not YAML, or is not a valid recipe.
        """
        data = read_yaml(path)
        for override in overrides:
            apply_override(data, override)
        return cls.from_dict(data, source=str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "recipe") -> "Recipe":
        """Validate a recipe given as plain data.

        Args:
            data: The recipe's keys.
            source: Its name in error messages.

        Returns:
            The recipe with defaults filled in.

        Raises:
            InputError: If a key is unknown, missing or has a bad value; all are listed.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{source}: {'; '.join(sentences(error, data, cls))}") from error

    def override(self, overrides: Sequence[str]) -> "Recipe":
        """Return the recipe with `key.path=value` changes, validated again.

        Args:
            overrides: As for `from_yaml`.

        Returns:
            The changed recipe.

        Raises:
            InputError: If a change is not of that form, or the recipe is no longer valid.
        """
        data = self.dump()
        for override in overrides:
            apply_override(data, override)
        return Recipe.from_dict(data)

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain data, defaults included, absent values left out."""
        return self.model_dump(mode="json")

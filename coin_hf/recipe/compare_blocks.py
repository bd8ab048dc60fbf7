"""The blocks of a comparison: its rows and their own settings."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from coin_hf.recipe.blocks import (
    AugmentBlock,
    Block,
    Coder,
    Count,
    DistillationBlock,
    FisherBlock,
    Lam,
    RegMeanBlock,
    Seed,
    Steps,
    TaskArithmeticBlock,
    named,
)


class Contender(Block):
    """One row of a comparison: a coder and its changes to the recipe."""

    coder: Coder
    """The coder."""
    name: str | None = None
    """Name of the row; by default the coder's."""
    lam: Lam | None = None
    """Overrides the recipe's `lam`."""
    fisher: FisherBlock | None = None
    """Overrides the recipe's block."""
    task_arithmetic: TaskArithmeticBlock | None = None
    """Overrides the recipe's block."""
    regmean: RegMeanBlock | None = None
    """Overrides the recipe's block."""
    distillation: DistillationBlock | None = None
    """Overrides the recipe's block."""
    refine: Steps | None = None
    """Overrides the recipe's steps; `[]` for none."""
    augment: AugmentBlock | None = None
    """Overrides the recipe's block; `null` for none."""

    @property
    def label(self) -> str:
        """The name of the contender's rows."""
        return self.name or self.coder


class CompareBlock(Block):
    """The rows of a comparison: every coder, on every draw of the samples."""

    coders: (
        Annotated[
            tuple[Contender, ...],
            Field(min_length=1),
            BeforeValidator(named("coder"), json_schema_input_type=tuple[Coder | Contender, ...]),
        ]
        | None
    ) = None
    """Names of coders, or blocks `{coder, name, ...}` with their own settings; by default all
    coders, `task_arithmetic` only if its foundation is given."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds for drawing the samples."""
    per_expert: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Values of P', for NDA against the number of samples; by default that of `samples`."""

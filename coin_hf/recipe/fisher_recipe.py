"""What one expert's Fisher is computed from, where it is computed alone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from coin_hf.errors import InputError
from coin_hf.recipe.blocks import Block, DatasetBlock, FisherBlock, SamplesBlock
from coin_hf.recipe.messages import sentences
from coin_hf.recipe.yaml_file import apply_override


class FisherRecipe(Block):
    """What one expert's Fisher is computed from, where it is computed alone."""

    datasets: dict[str, DatasetBlock] = Field(min_length=1)
    """The datasets the samples are drawn from, by a name of your choice."""
    samples: SamplesBlock = SamplesBlock()
    """The unlabeled inputs."""
    fisher: FisherBlock = FisherBlock()
    """Exact or estimated, how many samples at once, and in which precision it is saved."""

    @property
    def draws(self) -> dict[str, str]:
        """The samples' draws: the dataset of each, by name."""
        return self.samples.draws or {key: key for key in self.datasets}

    @classmethod
    def make(cls, data: Mapping[str, Any], overrides: Sequence[str] = ()) -> "FisherRecipe":
        """Validate one held as plain data.

        Args:
            data: Its keys.
            overrides: `key.path=value` strings applied to it.

        Returns:
            The recipe, defaults filled in.

        Raises:
            InputError: If a key is unknown, missing or has a bad value; all are listed.
        """
        changed = copy.deepcopy(dict(data))
        for override in overrides:
            apply_override(changed, override)
        try:
            return cls.model_validate(changed)
        except ValidationError as error:
            raise InputError("; ".join(sentences(error, changed, cls))) from error

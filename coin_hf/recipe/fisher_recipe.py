"""The recipe of a single expert's Fisher."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from coin_hf.errors import InputError
from coin_hf.recipe.blocks import Block, DatasetBlock, FisherBlock, SamplesBlock
from coin_hf.recipe.messages import sentences
from coin_hf.recipe.yaml_file import apply_override


class FisherRecipe(Block):
    """The recipe of a single expert's Fisher: datasets, samples and estimator."""

    datasets: dict[str, DatasetBlock] = Field(min_length=1)
    """The datasets the samples are drawn from, keyed by a name of your choice."""
    samples: SamplesBlock = SamplesBlock()
    """The unlabeled inputs."""
    fisher: FisherBlock = FisherBlock()
    """Estimator, batch size and saved precision."""

    @property
    def draws(self) -> dict[str, str]:
        """The draws of samples: name -> dataset."""
        return self.samples.draws or {key: key for key in self.datasets}

    @classmethod
    def make(cls, data: Mapping[str, Any], overrides: Sequence[str] = ()) -> "FisherRecipe":
        """Validate a Fisher recipe given as plain data.

        Args:
            data: The recipe's keys.
            overrides: `key.path=value` strings applied to it.

        Returns:
            The recipe with defaults filled in.

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

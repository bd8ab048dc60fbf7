"""Draw the P unlabelled samples: a seeded draw from each expert's own data, pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.data.rows import count_damaged, prepared_batch
from coin_hf.errors import InputError
from coin_hf.experts.text_preprocessing import AnyPreprocessing
from coin_hf.networks.inputs import Inputs, count, take
from coin_hf.recipe.blocks import set_aside


@dataclass(frozen=True, eq=False)
class Samples:
    """P inputs, pooled over the experts' datasets in their order."""

    inputs: Inputs
    """Inputs of the networks, shape (P, ...): preprocessed images, or a tokenizer's mapping, padded
    to the longest text of all."""
    labels: Tensor | None
    """Classes, shape (P,), used only to choose the hyperparameter; None if any is unknown."""
    sources: Tensor
    """The index of each input's draw, shape (P,): by default the expert's index."""
    rows: tuple[tuple[int, ...], ...]
    """The rows of each draw: positions in the dataset's split."""
    damaged: Mapping[str, int] = field(default_factory=dict)
    """Rows left out of the draws because they are damaged, by `dataset:split`."""

    def __len__(self) -> int:
        """Return P."""
        return count(self.inputs)

    def split(self, share: float) -> tuple["Samples", "Samples"]:
        """Set aside a share of each expert's samples, the last ones drawn.

        Args:
            share: The share to set aside, in [0, 1); rounded down to whole samples.

        Returns:
            The samples that stay and those set aside. With share 0 both are all samples: the
            hyperparameter is then chosen on the samples themselves, as in the paper.

        Raises:
            InputError: If a positive share sets aside no sample, or leaves none.
        """
        if share == 0:
            return self, self
        aside = [set_aside(share, len(rows)) for rows in self.rows]
        if not all(0 < n < len(rows) for n, rows in zip(aside, self.rows, strict=True)):
            raise InputError(
                f"samples.held_out = {share:g} of {min(map(len, self.rows))} samples per expert "
                "leaves one part empty: raise `samples.per_expert`"
            )
        kept = [len(rows) - n for rows, n in zip(self.rows, aside, strict=True)]
        return (
            self._take([slice(0, n) for n in kept]),
            self._take([slice(n, None) for n in kept]),
        )

    def first(self, count: int) -> Tensor:
        """Return the positions of the first samples of each draw.

        Rows are drawn in random order, so that these are a random part, as large for each draw,
        that depends on the seed alone.

        Args:
            count: How many of each draw.

        Returns:
            Positions among the P samples, in order; fewer for a draw that has fewer.
        """
        return self._positions([slice(0, count)] * len(self.rows))

    def _positions(self, parts: Sequence[slice]) -> Tensor:
        """Return the positions of a part of each draw."""
        numbers = torch.arange(len(self)).split([len(rows) for rows in self.rows])
        return torch.cat([n[part] for n, part in zip(numbers, parts, strict=True)])

    def _take(self, parts: Sequence[slice]) -> "Samples":
        """Keep a part of each expert's samples."""
        kept = self._positions(parts)
        return Samples(
            inputs=take(self.inputs, kept),
            labels=None if self.labels is None else self.labels[kept],
            sources=self.sources[kept],
            rows=tuple(rows[part] for rows, part in zip(self.rows, parts, strict=True)),
            damaged=self.damaged,
        )


def draw_samples(
    datasets: Sequence[LabelledRows[Any]],
    preprocessing: AnyPreprocessing,
    *,
    per_expert: int,
    seed: int,
) -> Samples:
    """Draw P' rows from each dataset.

    Draw i is seeded by (seed, i): further draws do not change it.

    Args:
        datasets: One for each draw, in order; repeats are allowed.
        preprocessing: The experts' common preprocessing.
        per_expert: P'.
        seed: The recipe's seed.

    Returns:
        P = N * P' samples.

    Raises:
        InputError: If a dataset has fewer rows.
    """
    drawn = [data.draw(per_expert, seed=(seed, i)) for i, data in enumerate(datasets)]
    pooled = [row for rows in drawn for row in rows]
    labels = [row.label for row in pooled]
    return Samples(
        inputs=prepared_batch(pooled, preprocessing),  # (P, ...)
        labels=None if None in labels else torch.tensor(labels),
        sources=torch.repeat_interleave(torch.arange(len(drawn)), per_expert),
        rows=tuple(tuple(row.position for row in rows) for rows in drawn),
        damaged=count_damaged(
            [(data.place, data.damaged) for data in datasets], datasets[0].lacking
        ),
    )

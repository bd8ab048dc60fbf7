"""Collect, expert by expert, what every map of the coded models should give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, count, fit_to, take
from coin_hf.networks.linear_maps import Intercept, LinearMap
from coin_hf.networks.logits import call
from coin_hf.networks.padding import real_rows, token_mask
from coin_hf.networks.processes import Processes
from coin_hf.refiners.lockstep import Unsuitable
from coin_hf.refiners.row_choice import choose, rows_per_sample, starts
from coin_hf.refiners.shelf import Shelf, Ticket

FIT, HELD_OUT = 0, 1
HELD_OUT_ROWS = 4
"""Rows held out per input of a map, at most: they choose one number."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Samples that go through a network at once."""

    part: int
    """`FIT` or `HELD_OUT`."""
    numbers: Tensor
    """Which samples of the part they are, shape (B,)."""
    whole: Inputs
    """The inputs of the whole part."""
    counted: bool = True
    """False for one sample that runs along in a process that has none."""

    @property
    def inputs(self) -> Inputs:
        """The chunk's inputs, a copy."""
        return take(self.whole, self.numbers)


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of which maps are regressed, of which samples."""

    places: dict[str, int]
    """Maps to refit: weight name -> entries of the input's first axis per sample."""
    chunks: Sequence[Chunk]
    """This process's samples."""
    samples: tuple[int, int]
    """Samples to fit and held out, over all processes."""
    multiple: float
    """Rows to fit per input of a map."""

    @classmethod
    def of(
        cls,
        places: dict[str, int],
        parts: tuple[Inputs, Inputs],
        *,
        size: int,
        multiple: float,
        processes: Processes,
    ) -> "Rows":
        """Cut this process's samples into chunks.

        Args:
            places: What `find_maps` found.
            parts: The samples to fit, and those held out; the same in every process.
            size: Samples per chunk.
            multiple: Rows to fit per input of a map.
            processes: The processes that share the samples.

        Returns:
            The rows, at least one chunk of each process.
        """
        chunks = []
        for part, inputs in enumerate(parts):
            for numbers in torch.arange(count(inputs))[processes.part].split(size):
                if len(numbers):
                    chunks.append(Chunk(part, numbers, inputs))
        if not chunks:  # it takes part in every sum
            first = torch.zeros(1, dtype=torch.long)
            chunks = [Chunk(FIT, first, parts[FIT], counted=False)]
        return cls(places, chunks, (count(parts[FIT]), count(parts[HELD_OUT])), multiple)

    def refits(self, stop: LinearMap, chunk: Chunk) -> bool:
        """Say whether a map is one of those to refit, used as `find_maps` saw it."""
        return len(stop.input) == self.places.get(stop.name, 0) * len(chunk.numbers)

    def per_sample(self, stop: LinearMap, part: int) -> int:
        """Return the rows of a map that each sample of a part gives."""
        inputs = stop.matrix(stop.weight).shape[1]
        multiple = self.multiple if part == FIT else min(self.multiple, HELD_OUT_ROWS)
        return rows_per_sample(inputs, self.samples[part], multiple)

    def gathered(self, stop: LinearMap, extent: int) -> bool:
        """Say whether the outputs of the chosen rows alone are cheaper than those of all.

        Experts and coded models do the same, so that equal ones differ by nothing, not even in how
        they are rounded.
        """
        most = max(self.per_sample(stop, part) for part in (FIT, HELD_OUT))
        return 2 * most <= extent

    def chosen(
        self, stop: LinearMap, rows: int, chunk: Chunk, mask: Tensor | None
    ) -> Tensor | None:
        """Choose the rows of a chunk.

        Args:
            stop: The map, on the whole chunk.
            rows: The rows of its input.
            chunk: The chunk.
            mask: Its `token_mask`.

        Returns:
            Their numbers on the input's device, ascending; None for all.

        Raises:
            Unsuitable: If tokens cannot be told from padding.
        """
        try:
            real = real_rows(stop, mask, rows)
        except ValueError as error:
            raise Unsuitable(str(error)) from error
        seed = 2 * list(self.places).index(stop.name) + chunk.part
        start = starts(self.samples[chunk.part], seed)[chunk.numbers]
        found = choose(rows, start, self.per_sample(stop, chunk.part), real)
        return None if found is None else found.to(stop.input.device)


@dataclass(eq=False)
class Targets:
    """sum_i beta_ci a_i at the rows that are regressed, for M coded models."""

    order: list[str] = field(default_factory=list)
    """The weights of all maps, in the order in which the experts apply them."""
    extents: dict[str, int] = field(default_factory=dict)
    """Rows of each map to refit that a sample has, padding included, by the weight's name."""
    masks: dict[int, Tensor] = field(default_factory=dict)
    """The `token_mask` of each chunk that has padding."""
    _kept: dict[tuple[int, str], Ticket] = field(default_factory=dict)

    @torch.no_grad()
    def collect(
        self,
        experts: Iterable[nn.Module],
        rows: Rows,
        betas: Sequence[Sequence[float]],
        shelf: Shelf,
        bar: Any,
    ) -> None:
        """Run each expert once over all chunks; only one needs to be in memory at a time.

        The weighted means are updated by each expert, t + beta_i / (beta_0 + ... + beta_i) (a_i -
        t), so that where all give the same it is kept to the bit.

        Args:
            experts: The N experts, of the same architecture, in eval mode.
            rows: What is regressed.
            betas: Coding weights, shape (M, N).
            shelf: Where the targets wait.
            bar: Counts the chunks.

        Raises:
            Unsuitable: If the experts do not apply the same maps.
        """
        weights = torch.tensor(betas, dtype=torch.float64)
        shares = weights / weights.cumsum(1)
        for i, expert in enumerate(experts):
            for number, chunk in enumerate(rows.chunks):
                order = self._run(expert, rows, number, chunk, shares[:, i], shelf)
                self.order = self.order or order
                if order != self.order:
                    raise Unsuitable("the experts do not go through the same maps")
                bar.update()

    def _run(
        self,
        expert: nn.Module,
        rows: Rows,
        number: int,
        chunk: Chunk,
        shares: Tensor,
        shelf: Shelf,
    ) -> list[str]:
        batch = fit_to(chunk.inputs, expert)
        mask, order, done = token_mask(batch), [], set[str]()
        if mask is not None:
            self.masks[number] = mask

        def take_in(stop: LinearMap) -> Tensor | None:
            if not stop.owned:
                return None
            order.append(stop.name)
            if stop.name in done or not rows.refits(stop, chunk):
                return None
            done.add(stop.name)
            output = stop()
            total = stop.count_rows(output)
            self.extents[stop.name] = total // len(chunk.numbers)
            chosen = rows.chosen(stop, total, chunk, mask)
            if rows.gathered(stop, self.extents[stop.name]):
                found = stop.of_rows(gather(stop, chosen))
            else:
                found = picked(stop, output, chosen)
            key = number, stop.name
            kept = shelf.take(self._kept[key]) if key in self._kept else None
            self._kept[key] = shelf.put(_mean(kept, found, shares))
            return output

        with Intercept(expert, take_in):
            call(expert, batch)
        return order

    def take(self, number: int, name: str, coded: int, shelf: Shelf) -> Tensor:
        """Return the target of a map.

        Args:
            number: The chunk's number.
            name: The map's weight.
            coded: Index of the coded model.
            shelf: Where the targets wait.

        Returns:
            Shape (R, outputs), at least float32.
        """
        found = shelf.read(self._kept[number, name])
        return found[coded]


def wide(value: Tensor) -> Tensor:
    """Return a tensor in the precision in which residuals are computed, at least float32."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def gather(stop: LinearMap, chosen: Tensor | None) -> Tensor:
    """Return the chosen rows of a map's input."""
    return wide(stop.rows(stop.input) if chosen is None else stop.chosen_rows(chosen))


def picked(stop: LinearMap, output: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the chosen rows of an output."""
    return wide(stop.flat(output) if chosen is None else stop.chosen_outputs(output, chosen))


def _mean(kept: Tensor | None, found: Tensor, shares: Tensor) -> Tensor:
    """Take one more expert's outputs into the means of the coded models, shape (M, R, outputs)."""
    if kept is None:
        # A copy: the network may go on to change its output in place.
        return found.repeat(len(shares), 1, 1)
    for mean, share in zip(kept, shares.tolist(), strict=True):
        mean += share * (found - mean)
    return kept

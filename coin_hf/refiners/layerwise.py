"""Layerwise refitting: refit each map in turn by least squares on the coded model's inputs."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, fit_to
from coin_hf.networks.linear_maps import LinearMap
from coin_hf.networks.memory import spare_bytes
from coin_hf.networks.processes import Processes
from coin_hf.refiners.lockstep import Pass, Unsuitable, find_maps, passes
from coin_hf.refiners.parking import Parking, waiting_bytes
from coin_hf.refiners.regression import (
    FewRows,
    NormalEquations,
    Regression,
    best_change,
    moved,
)
from coin_hf.refiners.row_choice import ROWS
from coin_hf.refiners.shelf import Scratch, Shelf
from coin_hf.refiners.targets import FIT, Chunk, Rows, Targets, gather, picked, wide

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Candidates of `strength: auto`."""
CHUNK_BYTES, CHUNK = 2**26, 256
"""What a chunk may hold while it waits, and the most samples in one: more run no faster."""


def refit_layers(
    model: nn.Module,
    experts: Iterable[nn.Module],
    inputs: Inputs,
    held_out: Inputs,
    *,
    betas: Sequence[float],
    strength: float | None = None,
    rows: float = ROWS,
    memory: int | None = None,
    scratch: Callable[[], Scratch] | None = None,
    batch_size: int | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Refit one coded model's maps to the weighted average of the experts' map outputs.

    `LayerRefits` with one coded model; see there.

    Args:
        model: The coded model, in eval mode; copied, not modified.
        experts: The N experts, of the same architecture, in eval mode.
        inputs: Samples to fit to, a tensor (P, ...) or a mapping of tensors. With an accelerator,
            the same in every process.
        held_out: Samples that choose the strength, shape (Q, ...).
        betas: The coded model's weights, shape (N,).
        strength: s; None to choose among `STRENGTHS`.
        rows: Rows to fit per input of a map, where its input has more.
        memory: Bytes of host memory to use, with a `scratch`; by default a part of what is free.
        scratch: Opens a file for what exceeds `memory`; None to hold all in memory.
        batch_size: Samples that go through a network at once; by default chosen by memory.
        accelerator: An `accelerate.Accelerator` whose processes share the samples.
        progress: Show bars on stderr, in the main process.

    Returns:
        All parameters of the coded model by name.

    Raises:
        Unsuitable: If the networks do not apply the same maps, or there is none to refit.
    """
    with LayerRefits(
        model,
        experts,
        inputs,
        held_out,
        betas=[betas],
        rows=rows,
        memory=memory,
        scratch=scratch,
        batch_size=batch_size,
        accelerator=accelerator,
        progress=progress,
    ) as refits:
        return refits.refit(model, 0, strength=strength)


class LayerRefits:
    """Refit coded models' maps to the weighted averages of the experts' map outputs.

    In forward order, for every dense convolution and every linear map, with z_c the coded model's
    own input (earlier maps already refitted) and a_i the output of expert i's map for the same
    sample:

        W = argmin sum_r || W z_c,r - sum_i beta_i a_i,r ||^2 + s t || W - W_c ||^2

    r runs over samples and positions (tokens without padding, or patches by im2col), or over evenly
    spaced ones where a map has more than `rows` for each of its inputs. t is the mean of the Gram
    matrix's diagonal, so that the strength s is dimensionless; a bias is one more input, always 1,
    with the number of rows as its t. Each map takes the strength with the smallest error on the
    held-out samples, searched downhill from that of the last map of its shape, or stays unchanged
    if none that was tried reduces it.

    This is RegMean (arXiv:2212.09849) for the coding objective: the inputs are the coded model's,
    not each expert's, and the target is the coded output. Where the maps of all experts are equal
    and have equal inputs, nothing changes.

    The experts run once, one after the other, chunk by chunk; what their maps should give together
    is kept for the rows that are regressed. Then each coded model makes one pass over all chunks,
    in which every chunk waits at every map. With a `scratch`, what waits stays within `memory`,
    beyond the networks and the samples: the rest lies in a file. Solved in float64; up to rounding
    the result is the same for any number of processes, any memory and any size of chunks.
    """

    def __init__(
        self,
        like: nn.Module,
        experts: Iterable[nn.Module],
        inputs: Inputs,
        held_out: Inputs,
        *,
        betas: Sequence[Sequence[float]],
        rows: float = ROWS,
        memory: int | None = None,
        scratch: Callable[[], Scratch] | None = None,
        batch_size: int | None = None,
        accelerator: Any = None,
        progress: bool = False,
    ) -> None:
        """Run the experts and keep what their maps should give together.

        Args:
            like: A network of the coded models' architecture, in eval mode.
            experts: The N experts, in eval mode; each is used up before the next is asked for.
            inputs: Samples to fit to, shape (P, ...). With an accelerator, the same in every
                process.
            held_out: Samples that choose the strength, shape (Q, ...).
            betas: The coding weights of M coded models, shape (M, N).
            rows: Rows to fit per input of a map, where its input has more.
            memory: Bytes of host memory to use, with a `scratch`; by default a part of the free.
            scratch: Opens a file for what exceeds `memory`; None to hold all in memory.
            batch_size: Samples that go through a network at once; by default chosen by memory.
            accelerator: An `accelerate.Accelerator` whose processes share the samples.
            progress: Show bars on stderr, in the main process.

        Raises:
            Unsuitable: If the experts do not apply the same maps, or there is none to refit.
        """
        self._processes, self._progress = Processes.of(accelerator), progress
        self._memory = spare_bytes(torch.device("cpu")) if memory is None else memory
        places, waiting = find_maps(like, inputs), waiting_bytes(like, inputs)
        if batch_size is None:
            most = min(CHUNK_BYTES, self._memory // 16) // max(1, waiting)
            batch_size = max(1, min(CHUNK, most))
        self._rows = Rows.of(
            places,
            (inputs, held_out),
            size=batch_size,
            multiple=rows,
            processes=self._processes,
        )
        own = sum(len(chunk.numbers) for chunk in self._rows.chunks)
        self._bytes = own * waiting
        self._scratch = scratch
        self._targets, self._shelf = Targets(), Shelf(self._memory // 4, scratch)
        steps = len(betas[0]) * len(self._rows.chunks)
        bar = self._processes.bar("targets", show=progress, unit="batch", total=steps)
        try:
            with bar:
                self._targets.collect(experts, self._rows, betas, self._shelf, bar)
        except BaseException:
            self._shelf.close()
            raise

    def __enter__(self) -> "LayerRefits":
        """Use the targets in a `with` block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Drop the targets."""
        self._shelf.close()

    @torch.no_grad()
    def refit(
        self, model: nn.Module, coded: int, *, strength: float | None = None
    ) -> dict[str, Tensor]:
        """Refit one coded model.

        Args:
            model: The coded model, in eval mode; copied, not modified.
            coded: Its index, the row of `betas`.
            strength: s; None to choose among `STRENGTHS`.

        Returns:
            All its parameters by name.

        Raises:
            Unsuitable: If it does not apply the experts' maps.
        """
        model = copy.deepcopy(model)
        strengths = STRENGTHS if strength is None else (strength,)
        device, done = next(model.parameters()).device, set[str]()
        hints: dict[torch.Size, int] = {}
        on_host = device.type == "cpu"  # what is moved away from there is for the disk
        free = self._memory - self._shelf.held - self._memory // 8  # an eighth to compute in
        room = free if on_host else spare_bytes(device)
        bar = self._processes.bar("refit", show=self._progress, total=len(self._rows.places))
        with Shelf(0 if on_host else free, self._scratch) as shelf, bar:
            parking = Parking(model, shelf, room)
            tracked = self._bytes > room and (self._scratch is not None or not on_host)
            every = [
                Pass(model, partial(_batch, chunk, model), parking.tracker() if tracked else None)
                for chunk in self._rows.chunks
            ]
            with passes(every):
                for name in [*self._targets.order, None]:
                    regressed = self._next_map(every, parking, name, coded, done)
                    if regressed is not None:
                        stop, parts = regressed
                        for part in parts:
                            part.close(self._processes)
                        # Networks repeat their blocks: the last map of this shape is a hint.
                        shape = stop.weight.shape
                        begin = hints.get(shape, 0)
                        change, hints[shape] = best_change(*parts, strengths, begin)
                        _apply(stop, model, change)
                        done.add(stop.name)
                        bar.update()
        return {name: value.detach() for name, value in model.named_parameters()}

    def _next_map(
        self, every: Sequence[Pass], parking: Parking, name: str | None, coded: int, done: set[str]
    ) -> tuple[LinearMap, tuple[Regression, Regression]] | None:
        """Let every chunk go on to the next map; return its regressions, if it is to be refitted.

        Every pass first gives the output of the map at which it waited, with its present weights.

        Raises:
            Unsuitable: If it is another map than the experts'.
        """
        found: tuple[LinearMap, tuple[Regression, Regression]] | None = None
        for number, (each, chunk) in enumerate(zip(every, self._rows.chunks, strict=True)):
            parking.fetch(each)
            stop = each.go(None if each.stop is None else each.stop())
            if (None if stop is None else stop.name) != name:
                raise Unsuitable("the experts and the coded model do not go through the same maps")
            if stop is None:
                continue
            if name not in done and self._rows.refits(stop, chunk):
                if found is None:
                    found = stop, self._regressions(stop)
                if chunk.counted:
                    self._add(found[1][chunk.part], stop, number, coded)
            parking.park(each)
        return found

    def _regressions(self, stop: LinearMap) -> tuple[Regression, Regression]:
        """Prepare a map's regressions; rows are kept where a factorization is smaller so."""
        outputs, inputs = stop.matrix(stop.weight).shape

        def prepared(kind: type[Regression]) -> Regression:
            bias, dtype = stop.bias_name is not None, wide(stop.weight[:0]).dtype
            return kind(inputs, outputs, bias=bias, device=stop.weight.device, dtype=dtype)

        each = min(self._targets.extents[stop.name], self._rows.per_sample(stop, FIT))
        most = self._rows.samples[FIT] * each
        return prepared(FewRows if 2 * most <= inputs else NormalEquations), prepared(FewRows)

    def _add(self, regression: Regression, stop: LinearMap, number: int, coded: int) -> None:
        """Add one chunk's rows, and what the map's outputs lack there."""
        chunk, extent = self._rows.chunks[number], self._targets.extents[stop.name]
        total = extent * len(chunk.numbers)
        chosen = self._rows.chosen(stop, total, chunk, self._targets.masks.get(number))
        rows = gather(stop, chosen)
        if self._rows.gathered(stop, extent):
            answers = stop.of_rows(rows)
        else:
            answers = picked(stop, stop(), chosen)
        target = self._targets.take(number, stop.name, coded, self._shelf)
        regression.add(rows, target - answers)


def _batch(chunk: Chunk, model: nn.Module) -> Inputs:
    """Make a chunk's batch, in the pass that it is for: so it waits as the pass's own tensors."""
    return fit_to(chunk.inputs, model)


def _apply(stop: LinearMap, model: nn.Module, change: Tensor | None) -> None:
    """Change a map's parameters in place."""
    if change is None:
        return
    parameters = dict(model.named_parameters())
    matrix = stop.matrix(parameters[stop.name])
    inputs = matrix.shape[1]
    matrix.copy_(moved(matrix, change[:inputs].T))
    if stop.bias_name is not None:
        bias = parameters[stop.bias_name]
        bias.copy_(moved(bias, change[-1]))

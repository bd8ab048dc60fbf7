"""Forward passes of several networks, in lockstep from one linear map to the next."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, fit_to, repeat_first
from coin_hf.networks.linear_maps import Intercept, LinearMap
from coin_hf.networks.logits import call
from coin_hf.networks.padding import real_rows, token_mask
from coin_hf.refiners.tracking import Tracker


class Unsuitable(ValueError):
    """The networks do not suit a refiner."""


class _Ended(BaseException):
    """Ends a pass that nobody waits for any more."""


class Pass:
    """A forward pass that stops at every map, in a thread that runs only while awaited."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs | Callable[[], Inputs],
        tracker: Tracker | None = None,
    ) -> None:
        """Prepare the pass; nothing runs yet.

        Args:
            model: A classifier in eval mode.
            inputs: All its inputs in one batch, on its device, or what makes them when it starts.
            tracker: Follows what the pass holds, if that is to be known.
        """
        self.model, self.inputs, self.tracker = model, inputs, tracker
        self.stop: LinearMap | None = None
        """The map at which the pass waits."""
        self.logits: Tensor | None = None
        """The network's answer, once the pass is complete."""
        self._failure: BaseException | None = None
        self._stops: SimpleQueue[LinearMap | None] = SimpleQueue()
        self._outputs: SimpleQueue[Tensor | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def go(self, output: Tensor | None = None) -> LinearMap | None:
        """Run to the next map.

        Args:
            output: The output of the map at which the pass waits; None at the start.

        Returns:
            The next map; None at the end.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._outputs.put(output)
        self.stop = self._stops.get()
        if self._failure is not None:
            raise self._failure
        return self.stop

    def close(self) -> None:
        """End the pass, wherever it waits."""
        if self._thread.is_alive():
            self._outputs.put(None)
            self._thread.join()

    def _work(self) -> None:
        try:
            device = next(self.model.parameters()).device
            if device.type == "cuda":  # a thread starts on device 0
                torch.cuda.set_device(device)
            with torch.no_grad(), Intercept(self.model, self._wait), self.tracker or nullcontext():
                inputs = self.inputs() if callable(self.inputs) else self.inputs
                self.logits = call(self.model, inputs)
        except _Ended:
            return
        except BaseException as error:
            self._failure = error
        self._stops.put(None)

    def _wait(self, stop: LinearMap) -> Tensor | None:
        if not stop.owned:
            return None
        self._stops.put(stop)
        output = self._outputs.get()
        if output is None:
            raise _Ended
        if self.tracker is not None:
            self.tracker.add(output)
        return output


@torch.no_grad()
def find_maps(model: nn.Module, sample: Inputs) -> dict[str, int]:
    """Find the maps whose input's first axis runs over the samples, by batches of two and three.

    Other maps, such as those of a position table, have equally long inputs for both.

    Args:
        model: A classifier in eval mode.
        sample: One sample or more, shape (P, ...); the first is used.

    Returns:
        Weight name -> entries of the first axis per sample (1, or the windows of a sample), in
        forward order. A weight used twice counts at its first use.

    Raises:
        Unsuitable: If there is none, or if tokens cannot be told from padding at one of them.
    """
    lengths: list[dict[str, int]] = []
    for size in (2, 3):
        found: dict[str, int] = {}
        batch = repeat_first(fit_to(sample, model), size)
        with passes([Pass(model, batch)]) as [only]:
            stop = only.go()
            while stop is not None:
                found.setdefault(stop.name, len(stop.input))
                stop = only.go(stop())
        lengths.append(found)
    two, three = lengths
    maps = {name: n // 2 for name, n in two.items() if 3 * n == 2 * three.get(name, 0)}
    if not maps:
        raise Unsuitable(
            f"{type(model).__name__} has no dense convolution or linear map: leave the step "
            "`layerwise` out"
        )
    _check_padding(model, sample, maps)
    return maps


def _check_padding(model: nn.Module, sample: Inputs, maps: dict[str, int]) -> None:
    """Run two texts, one with padding, and look for its rows at every map to refit."""
    if not isinstance(sample, Mapping) or "attention_mask" not in sample:
        return
    batch = repeat_first(fit_to(sample, model), 2)
    if batch["attention_mask"].dim() != 2 or batch["attention_mask"].shape[1] < 2:
        return
    batch["attention_mask"][1, -1] = 0
    mask = token_mask(batch)
    with passes([Pass(model, batch)]) as [only]:
        stop = only.go()
        while stop is not None:
            output = stop()
            if stop.name in maps:
                try:
                    real_rows(stop, mask, stop.count_rows(output))
                except ValueError as error:
                    raise Unsuitable(str(error)) from error
            stop = only.go(output)


@contextmanager
def passes(found: Sequence[Pass]) -> Iterator[Sequence[Pass]]:
    """End passes afterwards, wherever they wait.

    Args:
        found: The passes.

    Yields:
        The passes.
    """
    try:
        yield found
    finally:
        for each in found:
            each.close()

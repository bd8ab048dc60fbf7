"""Forward passes of several networks that go on together from one linear map to the next."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coin_hf.coders.gram_matrices import patches
from coin_hf.networks.logits import call


class Unsuitable(ValueError):
    """The networks do not suit a refiner."""


@dataclass(frozen=True, eq=False)
class Stop:
    """A dense convolution or linear map where a pass waits, before its output is computed."""

    weight: str
    """Name of the weight among the network's parameters."""
    bias: str | None
    """Name of the bias; None where there is none."""
    input: Tensor
    """What the map is applied to; its first axis runs over samples, or parts of samples."""
    run: Callable[[], Tensor]
    """Compute the output, with the parameters as they are when it is called."""
    rows: Callable[[Tensor], Tensor]
    """Write some of the input as rows, shape (n, m), that the weight (outputs, m) multiplies."""
    channels: int
    """The axis of the output's channels."""

    def flat(self, output: Tensor) -> Tensor:
        """Write an output in rows, shape (n, outputs)."""
        return output.movedim(self.channels, -1).flatten(0, -2)


class _Ended(BaseException):
    """Ends a pass for which nobody waits any more."""


class Pass:
    """A forward pass that stops at every map. It has a thread, which runs only while awaited."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        """Prepare the pass; nothing runs yet.

        Args:
            model: A classifier in eval mode.
            inputs: Its inputs, all of them in one batch, on its device.
        """
        self.model, self.inputs = model, inputs
        self.logits: Tensor | None = None
        """The network's answer, once the pass is through."""
        self._failure: BaseException | None = None
        self._stops: SimpleQueue[Stop | None] = SimpleQueue()
        self._outputs: SimpleQueue[Tensor | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def go(self, output: Tensor | None = None) -> Stop | None:
        """Go on to the next map.

        Args:
            output: The output of the map where the pass waits; None at the start.

        Returns:
            The next map; None at the end.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._outputs.put(output)
        stop = self._stops.get()
        if self._failure is not None:
            raise self._failure
        return stop

    def close(self) -> None:
        """End the pass, wherever it waits."""
        if self._thread.is_alive():
            self._outputs.put(None)
            self._thread.join()

    def _work(self) -> None:
        try:
            if self.inputs.is_cuda:  # a thread starts on device 0
                torch.cuda.set_device(self.inputs.device)
            with torch.no_grad(), _Maps(self.model, self._wait):
                self.logits = call(self.model, self.inputs)
        except _Ended:
            return
        except BaseException as error:
            self._failure = error
        self._stops.put(None)

    def _wait(self, stop: Stop) -> Tensor:
        self._stops.put(stop)
        output = self._outputs.get()
        if output is None:
            raise _Ended
        return output


@torch.no_grad()
def find_maps(model: nn.Module, sample: Tensor) -> dict[str, int]:
    """Find the maps whose input's first axis runs over the samples, by batches of two and three.

    Other maps, such as those of a table of positions, have as long an input for either.

    Args:
        model: A classifier in eval mode.
        sample: One sample, shape (1, ...).

    Returns:
        By the name of the weight how many entries of the first axis belong to one sample (1, or
        the windows of a sample), in forward order. A weight that is used twice stands for its
        first use.

    Raises:
        Unsuitable: If there is none.
    """
    lengths: list[dict[str, int]] = []
    first = next(model.parameters())
    for size in (2, 3):
        found: dict[str, int] = {}
        batch = sample.to(first.device, first.dtype).expand(size, *sample.shape[1:])
        with passes([model], batch) as [only]:
            stop = only.go()
            while stop is not None:
                found.setdefault(stop.weight, len(stop.input))
                stop = only.go(stop.run())
        lengths.append(found)
    two, three = lengths
    maps = {name: n // 2 for name, n in two.items() if 3 * n == 2 * three.get(name, 0)}
    if not maps:
        raise Unsuitable(
            f"{type(model).__name__} has no dense two-dimensional convolution or linear map: leave "
            "the step `layerwise` out"
        )
    return maps


@contextmanager
def passes(models: Sequence[nn.Module], inputs: Tensor) -> Iterator[list[Pass]]:
    """Prepare a pass of each network, and end them all afterwards.

    Args:
        models: The networks.
        inputs: The inputs of all of them.

    Yields:
        The passes, in order.
    """
    found = [Pass(model, inputs) for model in models]
    try:
        yield found
    finally:
        for each in found:
            each.close()


class _Maps(TorchFunctionMode):
    """Hands every map of a network to `wait`, which gives its output."""

    def __init__(self, model: nn.Module, wait: Callable[[Stop], Tensor]) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in model.named_parameters()}
        self.wait = wait

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reader = READERS.get(func)
        stop = None if reader is None else reader(self, func, *args, **kwargs)
        return func(*args, **kwargs) if stop is None else self.wait(stop)

    def linear(
        self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Stop | None:
        return self._stop(
            weight,
            bias,
            input,
            lambda: func(input, weight, bias),
            lambda part: part.flatten(0, -2),
            -1,
        )

    def convolution(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Stop | None:
        if groups > 1:
            return None
        return self._stop(
            weight,
            bias,
            input,
            lambda: func(input, weight, bias, stride, padding, dilation),
            lambda part: patches(part, weight, stride, padding, dilation),
            1,
        )

    def _stop(self, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
        """Make the stop, unless the weight or bias is computed from parameters, or missing."""
        name = self.names.get(id(weight))
        shift = self.names.get(id(bias))
        if name is None or (bias is not None and shift is None):
            return None
        return Stop(name, shift, *rest)


READERS: dict[Any, Callable[..., Stop | None]] = {
    F.linear: _Maps.linear,
    F.conv2d: _Maps.convolution,
}
"""How each function's arguments are read."""

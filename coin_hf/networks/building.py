"""Build a network whose weights are loaded afterwards: without drawing them, and within bounds."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

FILLING = {
    Tensor.uniform_,
    Tensor.normal_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
}
"""Functions that draw parameters: three of `torch.nn.init` are intercepted whole, the others end in
the first two."""


class Unfilled(TorchFunctionMode):
    """Skips the random initialisation of parameters: a third of the time to build a ResNet50.

    Buffers, which a checkpoint may omit, are initialised as usual. A parameter that is not loaded
    afterwards holds uninitialised memory: check that all are loaded.

    Example:
        with Unfilled():
            model = timm.create_model("resnet50")
        model.load_state_dict(weights)  # strict
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Return a parameter unchanged where it would be drawn at random."""
        kwargs = kwargs or {}
        if func in FILLING:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)


SHAPED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full, torch.eye}
"""Factories whose first arguments are the result's size."""
STEPPED = {torch.linspace, torch.logspace}
"""Factories of one axis, whose third argument is its length."""


class TooLargeError(ValueError):
    """A network that is being built exceeds its bounds."""


class Bounded(TorchFunctionMode):
    """Stops the building of a network that is far larger than the weights it is built for.

    A small file can describe a network of any width and depth: it is refused while it is built,
    before memory or time are spent. Counted are parameters and their elements as they are
    registered, and the size of every tensor before it is made. Other threads are not bounded.

    Example:
        with Bounded(parameters=161, elements=25_600_000):  # those of the file
            model = timm.create_model("resnet50")
    """

    def __init__(self, *, parameters: int, elements: int) -> None:
        """Set the bounds well above what the weights need, so that mistakes are told by name.

        Args:
            parameters: Number of tensors of the weights.
            elements: Number of their elements.
        """
        super().__init__()
        self.parameters, self.elements = 4 * parameters + 1000, 4 * elements + (1 << 27)
        self.seen, self.total = 0, 0
        self.thread = threading.get_ident()

    def __enter__(self) -> "Bounded":
        """Begin to count."""
        self.hook = register_module_parameter_registration_hook(self._registered)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)
        self.hook.remove()

    def _registered(self, module: nn.Module, name: str, value: Any) -> None:
        if value is None or threading.get_ident() != self.thread:
            return
        self.seen += 1
        self.total += value.numel()
        if self.seen > self.parameters or self.total > self.elements:
            raise TooLargeError("the network is far larger than its weights")

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Refuse to make a tensor that no network of these bounds has."""
        kwargs = kwargs or {}
        if self._size(func, args, kwargs) > self.elements:
            raise TooLargeError("a tensor of the network is far larger than its weights")
        return func(*args, **kwargs)

    def _size(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
        """Return the number of elements of a factory's result, or of arguments broadcast."""
        if func in STEPPED:
            steps = kwargs.get("steps", args[2] if len(args) > 2 else 0)
            return steps if isinstance(steps, int) else 0
        given = [*args, *(kwargs[key] for key in ("size", "start", "end", "step") if key in kwargs)]
        if func is torch.arange:
            numbers = [n for n in given if isinstance(n, int | float)]
            start, end, step = (0, *numbers, 1)[-3:] if len(numbers) < 2 else (*numbers, 1)[:3]
            return int(abs(end - start) / abs(step)) if step else 0
        if func in SHAPED:
            shape = given[0] if given and isinstance(given[0], list | tuple) else given
            sides = [side for side in shape if isinstance(side, int)]
            return math.prod(sides) * (sides[0] if func is torch.eye and len(sides) == 1 else 1)
        shapes = [each.shape for each in args if isinstance(each, Tensor)]
        if len(shapes) < 2:
            return 0
        try:
            return math.prod(torch.broadcast_shapes(*shapes))
        except RuntimeError:  # of other shapes, as of a product
            return 0

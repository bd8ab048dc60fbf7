"""Build a network whose weights are loaded afterwards, without filling them at random first."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = (Tensor.uniform_, Tensor.normal_)
"""What the functions of `torch.nn.init` draw by."""


class Unfilled(TorchFunctionMode):
    """Skips the random numbers that parameters are filled with: a third of a ResNet50's building.

    Buffers, which a checkpoint may leave out, are filled as always. A parameter that is not loaded
    afterwards holds whatever was in memory: check that all of them are.

    Example:
        with Unfilled():
            model = timm.create_model("resnet50")
        model.load_state_dict(weights)  # strict
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Return a parameter as it is where it would be filled at random."""
        if func in FILLING and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))

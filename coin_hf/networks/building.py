"""Build a network whose weights are loaded afterwards, without filling them at random first."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = {
    Tensor.uniform_,
    Tensor.normal_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
}
"""How parameters are drawn: `torch.nn.init` hands three of its functions over as a whole, the
others end in the first two."""


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
        kwargs = kwargs or {}
        if func in FILLING:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)

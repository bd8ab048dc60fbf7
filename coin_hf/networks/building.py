"""Build a network without random initialisation, for weights that are loaded afterwards."""

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

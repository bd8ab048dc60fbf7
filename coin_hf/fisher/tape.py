"""Watch one forward pass: which function uses which parameter, and with which input."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coin_hf.fisher.elementwise import Elementwise, pull_back
from coin_hf.fisher.squares import accumulator_dtype
from coin_hf.fisher.vector_jacobian import ready_signature

Shape = tuple[int, ...]
Rule = Callable[..., Tensor | None]  # (tape, *arguments of the function) -> output, None: decline


class Tape(TorchFunctionMode):
    """Intercepts the torch functions called in a forward pass and applies the rules to them.

    A rule runs its function on detached parameters, so that no gradient of a weight is formed, and
    registers a callback that adds the squares once the gradient of the output arrives. A
    parameter used by a function without a rule stays in the autograd graph, where
    `batched_backward` finds it.

    A tensor computed from parameters alone (a reshaped layer scale, position biases looked up in a
    table) is *derived*: rules for elementwise use treat it like a parameter, and its per-sample
    gradient is pulled back to the parameters before it is squared.

    Args:
        rules: torch function -> rule.
        sums: Name -> running sum, of the parameter's shape.
        names: id of a parameter -> its name, for the parameters the rules may take.
        samples: P of this pass.
        accepts: Whether a parameter may be taken by a function whose output has this shape for
            one sample.
        checking: Keep the gradients in `watched` instead of adding their squares.

    Attributes:
        uses: Name -> output shapes, per sample, of the functions with a rule that used it.
        saved: Tensors that the callbacks read, their versions when saved, and for which parameters.
        derived: id of a derived tensor -> that tensor and the parameters it comes from.
        watched: Uses and gradient of each output, when `checking`.
        reached: Names of the parameters in `watched`.
        sizes: Bytes of each watched output.
        retain: Whether the callbacks are needed again; if not, they release what they hold.
    """

    def __init__(
        self,
        rules: dict[Any, Rule],
        sums: dict[str, Tensor],
        names: dict[int, str],
        samples: int,
        accepts: Callable[[str, Shape], bool],
        *,
        checking: bool = False,
    ) -> None:
        super().__init__()
        self.rules, self.sums, self.names, self.samples = rules, sums, names, samples
        self.accepts, self.checking = accepts, checking
        self.uses: dict[str, list[Shape]] = {}
        self.derived: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
        self.saved: list[tuple[Tensor, int, list[str]]] = []
        self.watched: list[tuple[list[tuple[str, Shape]], Tensor]] = []
        self.reached: set[str] = set()
        self.sizes: list[int] = []
        self.retain = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the rule of `func`, or `func` itself where there is none or it declines."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        rule = self.rules.get(func)
        if rule is not None:
            output = rule(self, *args, **kwargs)
            if output is not None:
                return output
        output = func(*args, **kwargs)
        self._derive(output, (*args, *kwargs.values()))
        return output

    def takes(self, tensor: Any) -> bool:
        """Whether `tensor` is a parameter that the rules may take, or derived from such."""
        return bool(self.sources(tensor))

    def takes_any(self, *tensors: Any) -> bool:
        """Whether the rules may take any of the tensors."""
        return any(self.takes(tensor) for tensor in tensors)

    def detached(self, tensor: Any, *, direct: bool = False) -> Any:
        """Detach a tensor that the rules take (`direct`: parameters only); return others as is."""
        takes = self.takes(tensor) and not (direct and self.is_derived(tensor))
        return tensor.detach() if takes else tensor

    def is_derived(self, tensor: Any) -> bool:
        """Whether `tensor` is computed from parameters, not one itself."""
        return id(tensor) in self.derived

    def sources(self, tensor: Any) -> dict[str, Tensor]:
        """Return the parameters behind a parameter or derived tensor, by name; none for others."""
        if id(tensor) in self.names:
            return {self.names[id(tensor)]: tensor}
        return self.derived[id(tensor)][1] if id(tensor) in self.derived else {}

    def _derive(self, output: Any, arguments: Sequence[Any]) -> None:
        """Record outputs whose gradient leads to parameters alone."""
        given = [tensor for tensor in _tensors(arguments) if tensor.requires_grad]
        sources = [self.sources(tensor) for tensor in given]
        if sources and all(sources):
            merged = {name: parameter for each in sources for name, parameter in each.items()}
            for tensor in _tensors([output]):
                if tensor.requires_grad and id(tensor) not in self.names:
                    self.derived[id(tensor)] = (tensor, merged)

    def _chosen(self, squares: dict[Any, Any]) -> dict[Any, Any]:
        """Select the squares of what may be taken, each parameter once.

        A derived tensor is taken only elementwise, and only by itself.
        """
        chosen: dict[Any, Any] = {}
        done: set[int] = set()
        for key, square in squares.items():
            group = key if isinstance(key, tuple) else (key,)
            direct = not isinstance(square, Elementwise)
            if any(id(tensor) in done for tensor in group):
                continue
            if all(self.takes(t) and not (direct and self.is_derived(t)) for t in group):
                chosen[key] = square
                done.update(map(id, group))
        return chosen

    def samplewise(self, tensor: Tensor) -> bool:
        """Whether the leading axis can hold R rows for each of the P samples."""
        return tensor.dim() > 0 and len(tensor) > 0 and len(tensor) % self.samples == 0

    def watch(
        self,
        output: Tensor,
        saved: list[Tensor],
        squares: dict[Any, Any],
    ) -> Tensor | None:
        """Register the squares to be added when the gradient of `output` arrives.

        Args:
            output: Output of a function on detached parameters, shape (P * R, ...).
            saved: Activations that the callbacks read.
            squares: Parameter, or tuple of parameters, -> callback (running sum of each, gradient
                of shape (M, P * R, ...)); or derived tensor -> `Elementwise`. What the rules may
                not take is skipped; for a repeated parameter, the first entry counts.

        Returns:
            The output to give the model, or None if this use may not be taken.
        """
        shape = (len(output) // self.samples, *output.shape[1:])
        callbacks: list[tuple[list[str], Any]] = []
        for key, square in self._chosen(squares).items():
            group = key if isinstance(key, tuple) else (key,)
            if self.is_derived(key):
                for name, parameter in self.sources(key).items():
                    callbacks.append(([name], partial(pull_back, square, key, parameter)))
            else:
                callbacks.append(([self.names[id(tensor)] for tensor in group], square))
        used = [name for names, _ in callbacks for name in names]
        if not all(self.accepts(name, shape) for name in used):
            return None
        for name in used:
            self.uses.setdefault(name, []).append(shape)
        self.saved += [(tensor, tensor._version, used) for tensor in saved]
        self.sizes.append(output.nbytes)
        if not output.requires_grad:
            # The backward pass ends here. The model may not modify a leaf in place: clone it.
            output = output.detach().requires_grad_().clone()
        elif output._is_view():
            # If the model modified it in place, the hook on a view would be lost.
            output = output.clone()

        def consume(gradient: Tensor) -> None:
            if self.checking:
                self.watched.append(([(name, shape) for name in used], gradient))
                self.reached.update(used)
                return
            gradient = gradient.to(accumulator_dtype(gradient.dtype))
            for names, square in callbacks:
                totals = [self.sums[name] for name in names]
                if all(total.device == gradient.device for total in totals):
                    square(*totals, gradient)
                    continue
                # The running sums are kept where there is more memory.
                parts = [torch.zeros_like(total, device=gradient.device) for total in totals]
                square(*parts, gradient)
                for total, part in zip(totals, parts, strict=True):
                    total += part.to(total.device)
            if not self.retain:
                callbacks.clear()  # and their activations: the graph itself lives until its end

        def hook(gradient: Tensor) -> None:
            Receive.apply(gradient, consume)

        output.register_hook(hook)
        return output


@ready_signature
class Receive(torch.autograd.Function):
    """Passes a gradient to a callback, with the cotangent axis in front.

    In a batched backward pass a tensor hook sees the gradient of one cotangent; a vmap rule is the
    public way to see all M of them.
    """

    @staticmethod
    def forward(gradient: Tensor, consume: Callable[[Tensor], None]) -> Tensor:
        """Outside vmap: (...) is one cotangent."""
        consume(gradient[None])
        return gradient.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing here is differentiated."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, gradient: Tensor, consume: Callable[[Tensor], None]) -> Any:
        """Inside vmap: M cotangents, along the axis `in_dims[0]`."""
        consume(gradient.movedim(in_dims[0], 0))
        return gradient.new_empty(0), None


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among a function's arguments or results, also those inside lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)

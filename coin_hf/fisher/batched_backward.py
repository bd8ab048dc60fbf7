"""One chunk of samples: one forward pass, one batched backward pass, squares at every layer.

The weights are frozen, so the backward pass propagates only gradients of activations. It runs for
all M cotangents at once (`torch.func.vmap` of `torch.autograd.grad`), and each function with a rule
adds its squares when the gradient of its output arrives. Parameters used in any other way are found
in the autograd graph of the logits and take the generic path: nothing is skipped.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coin_hf.fisher.borrow import refresh
from coin_hf.fisher.generic import Cotangents, add_generic
from coin_hf.fisher.rules.table import RULES
from coin_hf.fisher.tape import Shape, Tape
from coin_hf.networks.inputs import count, take
from coin_hf.networks.logits import call


@dataclass
class Plan:
    """How a network's parameters are handled, and the memory cost of a sample.

    Attributes:
        ruled: Name -> parameter used once, by a function with a rule, on a leading sample axis.
        logits: Logits of the first sample, (1, K).
        generic: Name -> any other parameter.
        uses: Name -> output shape, per sample, of the function that uses it. Another shape is
            another use, where some axis has the chunk's length by chance.
        refused: Names and shapes of uses found not to be sample by sample.
        batched: Whether the backward pass can run for several cotangents at once.
        activations: Bytes that the forward pass keeps per sample, approximately.
        widest: Bytes of a sample's largest activation.
        usual: Mean bytes of a sample's activations.
    """

    ruled: dict[str, nn.Parameter]
    logits: Tensor
    generic: dict[str, nn.Parameter] = field(default_factory=dict)
    uses: dict[str, Shape] = field(default_factory=dict)
    refused: set[tuple[str, Shape]] = field(default_factory=set)
    batched: bool = True
    activations: int = 1
    widest: int = 1
    usual: int = 1

    def demote(self, names: Iterable[str]) -> None:
        """Move parameters to the generic path."""
        for name in names:
            if name in self.ruled:
                self.generic[name] = self.ruled.pop(name)


def make_plan(model: nn.Module, inputs: Any) -> Plan:
    """Try the rules on two samples and keep the parameters for which they hold.

    They hold where each sample's rows are contiguous along the leading axis of an activation: a
    cotangent on one sample then leaves no gradient on the rows of the other.

    Args:
        model: A borrowed model (see `borrow.borrowed`).
        inputs: At least one sample.

    Returns:
        A plan that holds for every chunk, except for what `add_chunk` still demotes.

    Raises:
        OutOfMemoryError: If two samples do not fit.
    """
    pair = take(inputs, [0, min(1, count(inputs) - 1)])
    with torch.no_grad():
        alone = torch.cat([call(model, take(pair, slice(row, row + 1))) for row in (0, 1)])
    plan = Plan(dict(model.named_parameters()), alone[:1])
    tolerance = torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
    while plan.ruled:
        tape, logits = _forward(model, pair, plan, {}, checking=True)
        if not (logits.detach() - alone).abs().max() <= tolerance:
            # Samples of a batch influence each other: eq. (16) means one sample at a time.
            plan.demote(list(plan.ruled))
            break
        conflicts = _conflicts(tape, logits, plan)
        plan.demote(conflicts)
        if conflicts:
            continue
        plan.activations = sum(tape.sizes)  # the functions without a rule keep about as much
        plan.widest = max(1, max(tape.sizes, default=1) // 2)
        plan.usual = max(1, plan.activations // (2 * max(1, len(tape.sizes))))
        leaking = _leaks(tape, logits, plan)
        plan.demote(tape.uses.keys() - tape.reached)  # no path to the logits, or none seen
        if not leaking:
            plan.uses = {name: shapes[0] for name, shapes in tape.uses.items()}
            break
        plan.refused |= leaking
    return plan


def _leaks(tape: Tape, logits: Tensor, plan: Plan) -> set[tuple[str, Shape]]:
    """Find the uses where a cotangent on one of two samples left a gradient on the other."""
    direction = torch.ones_like(logits[0]).cumsum(0)  # no class is omitted, none cancels another
    vectors = torch.eye(2).to(direction)[:, :, None] * direction  # (2, 2, K): one sample each
    if plan.batched:
        try:
            _backward(tape, logits, vectors, batched=True, retain=True)
            return _leaking(tape, [0, 1])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operation that vmap cannot batch
            plan.batched = False
    leaking = set()
    for sample in (0, 1):
        tape.watched.clear()
        _backward(tape, logits, vectors[sample, None], batched=False, retain=True)
        leaking |= _leaking(tape, [sample])
    return leaking


def _leaking(tape: Tape, samples: Sequence[int]) -> set[tuple[str, Shape]]:
    """Return these uses after one pass, with cotangent m on samples[m]."""
    leaking = set()
    for uses, gradient in tape.watched:
        rows = gradient.unflatten(1, (2, -1))
        if any(rows[m, 1 - sample].any() for m, sample in enumerate(samples)):
            leaking.update(uses)
    return leaking


def add_chunk(
    sums: dict[str, Tensor],
    model: nn.Module,
    inputs: Any,
    cotangents: Cotangents,
    plan: Plan,
    *,
    block: int,
) -> None:
    """Add sum_l sum_m (d v_{m,l}^T f(x_l) / d theta)^2 over the samples of a chunk.

    Args:
        sums: Name -> running sum, of the parameter's shape; changed in place.
        model: A borrowed model (see `borrow.borrowed`).
        inputs: P samples, a tensor or a dict of tensors with leading axis P.
        cotangents: (logits, positions in the chunk) -> vectors of shape (M, len(positions), K).
        plan: From `make_plan`; parameters are demoted here if this chunk uses them differently.
        block: Cotangents per backward pass.
    """
    while plan.ruled:
        tape, logits = _forward(model, inputs, plan, sums)
        conflicts = _conflicts(tape, logits, plan)
        if not conflicts:
            tape.saved.clear()
            *blocks, last = cotangents(logits, range(len(logits))).split(block)
            for vectors in blocks:
                _backward(tape, logits, vectors, plan.batched, retain=True)
            _backward(tape, logits, last, plan.batched)
            break
        plan.demote(conflicts)
    add_generic(sums, model, inputs, cotangents, plan.generic)


def _forward(
    model: nn.Module, inputs: Any, plan: Plan, sums: dict[str, Tensor], checking: bool = False
) -> tuple[Tape, Tensor]:
    """Run the model under a tape; only parameters that the rules take require a gradient."""
    names = {id(parameter): name for name, parameter in plan.ruled.items()}
    samples = count(inputs)

    def accepts(name: str, shape: Shape) -> bool:
        if checking:
            return (name, shape) not in plan.refused
        return samples == 1 or plan.uses.get(name) == shape  # all rows belong to one sample

    tape = Tape(RULES, sums, names, samples, accepts, checking=checking)
    refresh(model)
    with _frozen(plan.generic.values()), sdpa_kernel(SDPBackend.MATH), tape:
        return tape, call(model, inputs)


def _backward(
    tape: Tape, logits: Tensor, vectors: Tensor, batched: bool, retain: bool = False
) -> None:
    """Propagate the cotangents, (M, P, K), through the whole graph; the tape adds the squares."""
    leaves = list(_variables(logits).values())
    if not leaves:
        return

    def one(vector: Tensor, retain: bool = retain) -> tuple[Tensor, ...]:
        tape.retain = retain
        return torch.autograd.grad(logits, leaves, vector, retain_graph=retain)

    if batched:
        torch.func.vmap(one)(vectors)
    else:
        for m, vector in enumerate(vectors):
            one(vector, retain=retain or m < len(vectors) - 1)


def _conflicts(tape: Tape, logits: Tensor, plan: Plan) -> list[str]:
    """List the parameters that the rules must not take, in the model's order.

    These are used more than once (the square of a sum is not the sum of the squares), still in the
    autograd graph (used by a function without a rule), or have an input that was modified in place
    after its use.
    """
    names = {id(parameter): name for name, parameter in plan.ruled.items()}
    found = {name for name, shapes in tape.uses.items() if len(shapes) > 1}
    found |= {names[i] for i in _variables(logits) if i in names}
    for tensor, version, users in tape.saved:
        if tensor._version != version:
            found.update(users)
    return [name for name in plan.ruled if name in found]


def _variables(output: Tensor) -> dict[int, Tensor]:
    """Return the leaf tensors in the autograd graph of `output`, by id."""
    pending: list[Any] = [output.grad_fn]
    seen: set[Any] = set()
    leaves: dict[int, Tensor] = {}
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        pending += [parent for parent, _ in node.next_functions]
    return leaves


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Keep parameters out of the autograd graph."""
    frozen = list(parameters)
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)

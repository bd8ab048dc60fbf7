"""Ways to the Fisher that need no peer: the bound, coin-hf, and what stock torch offers.

A way is prepared with a network of its own and then run on samples: `prepare(model, case)` gives
`run(inputs)`, and only the latter is timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.cases import PROBES, Case
from coin_hf.fisher import diagonal_fisher
from coin_hf.fisher.estimators import cotangents_for

JACOBIANS = 2
"""Samples whose Jacobians `jacrev` holds at once: more only take more memory."""

Run = Callable[[Tensor], dict[str, Tensor]]
"""Samples (P, ...) -> Fisher by parameter, the mean over samples; empty where none is computed."""


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    title: str
    prepare: Callable[[nn.Module, Case], Run]
    package: str | None = None
    """Distribution that must be installed."""
    fisher: bool = True
    """Whether it computes the Fisher."""
    exact_only: bool = True
    """Whether it can only do all K logits."""
    chunk: int | None = None
    """Samples at once, where that does not depend on the network; it is timed on no fewer."""
    large: bool = False
    """Whether it takes as many at once as the bound: it gains by it, in time."""


def forward(model: nn.Module, case: Case) -> Run:
    """One forward pass."""

    @torch.no_grad()
    def run(inputs: Tensor) -> dict[str, Tensor]:
        for chunk in inputs.split(case.spec.chunk):
            model(chunk)
        return {}

    return run


def bound(model: nn.Module, case: Case) -> Run:
    """What any way through the activations' gradients costs: forward, M backwards to the input.

    The weights are frozen: no gradient of a weight is formed, nothing is squared.
    """
    model.requires_grad_(False)

    def run(inputs: Tensor) -> dict[str, Tensor]:
        for start, chunk in _chunks(inputs, case.spec.chunk):
            chunk = chunk.clone().requires_grad_()
            logits = model(chunk.view_as(chunk))  # torch's operation counter takes no leaf
            _each_cotangent(logits, vectors(case, logits, start), [chunk])
        return {}

    return run


def ours(model: nn.Module, case: Case) -> Run:
    """coin-hf, as a user calls it."""

    def run(inputs: Tensor) -> dict[str, Tensor]:
        return diagonal_fisher(model, inputs, estimator=case.estimator, probes=PROBES)

    return run


def loop(model: nn.Module, case: Case) -> Run:
    """Plain autograd, a backward pass for each sample and cotangent: slow and obvious."""
    parameters = dict(model.named_parameters())

    def run(inputs: Tensor) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(value) for name, value in parameters.items()}

        def add(gradients: tuple[Tensor, ...]) -> None:
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.addcmul_(gradient, gradient)

        for start, sample in _chunks(inputs, 1):
            logits = model(sample)
            _each_cotangent(logits, vectors(case, logits, start), list(parameters.values()), add)
        return {name: total / len(inputs) for name, total in sums.items()}

    return run


def jacrev(model: nn.Module, case: Case) -> Run:
    """`torch.func`: the Jacobian of each sample, a few samples at a time."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def logits(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample[None],))[0]

    jacobians = torch.func.vmap(torch.func.jacrev(logits), in_dims=(None, 0))

    def run(inputs: Tensor) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for chunk in inputs.split(JACOBIANS):
            for name, jacobian in jacobians(parameters, chunk).items():  # (B, K, ...)
                sums[name] += jacobian.square().sum((0, 1))
        return {name: total / len(inputs) for name, total in sums.items()}

    return run


def vectors(case: Case, logits: Tensor, start: int) -> Tensor:
    """The cotangents of a chunk that begins at sample `start`, shape (M, B, K)."""
    positions = range(start, start + len(logits))
    return cotangents_for(
        logits.detach(), positions, estimator=case.estimator, probes=PROBES, seed=0
    )  # as `ours` draws them


def _each_cotangent(
    logits: Tensor,
    cotangents: Tensor,
    wanted: list[Tensor],
    use: Callable[[tuple[Tensor, ...]], None] = lambda gradients: None,
) -> None:
    """Run one backward pass for each cotangent."""
    for m, vector in enumerate(cotangents):
        keep = m < len(cotangents) - 1
        use(torch.autograd.grad(logits, wanted, vector, retain_graph=keep))


def _chunks(inputs: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(inputs), size):
        yield start, inputs[start : start + size]


STOCK = {
    "forward": Way("forward", forward, fisher=False, exact_only=False),
    "bound": Way("**bound**: forward, input-backwards", bound, fisher=False, exact_only=False),
    "ours": Way("**coin-hf**", ours, exact_only=False),
    "loop": Way("loop over samples and logits", loop, exact_only=False, chunk=1),
    "jacrev": Way("torch.func vmap(jacrev)", jacrev, chunk=JACOBIANS),
}

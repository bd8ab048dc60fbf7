"""Layerwise refitting: refit each map in turn by least squares on the coded model's inputs."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, concatenate, count, fit_to, take
from coin_hf.networks.linear_maps import LinearMap
from coin_hf.networks.matmul import product
from coin_hf.networks.padding import real_rows, token_mask
from coin_hf.networks.processes import Processes
from coin_hf.refiners.lockstep import Pass, Unsuitable, find_maps, passes

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Candidates of `strength: auto`, tried per map in this order until the error grows again."""
ENTRIES = 2**24
"""Most entries of the rows formed at once."""


@torch.no_grad()
def refit_layers(
    model: nn.Module,
    experts: Sequence[nn.Module],
    inputs: Inputs,
    held_out: Inputs,
    *,
    betas: Sequence[float],
    strength: float | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Refit the coded model's maps to the weighted average of the experts' map outputs.

    In forward order, for every dense convolution and every linear map, with z_c the coded model's
    own input (earlier maps already refitted) and a_i the output of expert i's map for the same
    sample:

        W = argmin sum_r || W z_c,r - sum_i beta_i a_i,r ||^2 + s t || W - W_c ||^2

    r runs over samples and positions (tokens without padding, or patches by im2col). t is the mean
    of the Gram matrix's diagonal, so that the strength s is dimensionless; a bias is one more
    input, always 1, with the number of rows as its t. Each map takes the strength with the smallest
    error on the held-out samples (the first minimum), or stays unchanged if none reduces it.

    This is RegMean (arXiv:2212.09849) for the coding objective: the inputs are the coded model's,
    not each expert's, and the target is the coded output. Where the maps of all experts are equal
    and have equal inputs, nothing changes. All networks make one pass over all samples at once,
    which takes the memory of N + 1 such passes without gradients.

    Args:
        model: The coded model, in eval mode; copied, not modified.
        experts: The N experts, of the same architecture, in eval mode.
        inputs: Samples to fit to, a tensor (P, ...) or a mapping of tensors. With an accelerator,
            the same in every process.
        held_out: Samples that choose the strength, shape (Q, ...).
        betas: The coded model's weights, shape (N,).
        strength: s; None to choose among `STRENGTHS`.
        accelerator: An `accelerate.Accelerator` whose processes share the samples.
        progress: Show a bar on stderr, in the main process.

    Returns:
        All parameters of the coded model by name. Solved in float64; up to rounding the same for
        any number of processes.

    Raises:
        Unsuitable: If the networks do not apply the same maps, or there is none to refit.
    """
    places = find_maps(model, inputs)
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    processes = Processes.of(accelerator)
    parts = [take(part, processes.part) for part in (inputs, held_out)]
    # One extra sample at the end, not counted: no process is without samples.
    batch = fit_to(concatenate([*parts, take(inputs, slice(0, 1))]), model)
    split, mask = [count(part) for part in parts], token_mask(batch)
    strengths = STRENGTHS if strength is None else (strength,)
    done: set[str] = set()
    with passes([*experts, model], batch) as every, processes.bar("refit", show=progress) as bar:
        stops = [each.go() for each in every]
        while True:
            *others, stop = stops
            if any((o and o.name) != (stop and stop.name) for o in others):
                raise Unsuitable("the experts and the coded model do not go through the same maps")
            if stop is None:
                break
            answers = [other() for other in others if other is not None]
            each = places.get(stop.name, 0)
            if stop.name not in done and len(stop.input) == each * count(batch):
                residual = _mean(answers, betas)
                residual -= stop().to(residual)
                ends = (0, each * split[0], each * sum(split))
                flat = stop.flat(residual)
                try:
                    real = real_rows(stop, mask, len(flat))
                except ValueError as error:
                    raise Unsuitable(str(error)) from error
                normal = [_Normal(stop, flat, real, *part) for part in pairwise(ends)]
                for part in normal:
                    part.reduce(processes)
                _refit(stop, parameters, normal, strengths)
                del residual, flat, normal
                done.add(stop.name)
                bar.update()
            answers.append(stop())
            stops = _advance(every, answers)
    return {name: value.detach() for name, value in parameters.items()}


def _advance(every: Sequence[Pass], answers: list[Tensor]) -> list[LinearMap | None]:
    """Resume each pass; its answer is released as soon as it is taken."""
    answers.reverse()
    return [each.go(answers.pop()) for each in every]


def _mean(answers: Sequence[Tensor], betas: Sequence[float]) -> Tensor:
    """Return sum_i beta_i a_i, written so that equal answers are returned unchanged."""
    dtype = torch.promote_types(answers[0].dtype, torch.float32)
    first, *others = (answer.to(dtype) for answer in answers)
    total = first.clone()
    for beta, other in zip(betas[1:], others, strict=True):
        total += beta * (other - first)
    return total


class _Normal:
    """The normal equations of one map over some samples: Gram, right-hand side, rows, error."""

    def __init__(
        self, stop: LinearMap, residual: Tensor, real: Tensor | None, begin: int, end: int
    ) -> None:
        places = len(residual) // len(stop.input)
        device = "cpu" if residual.device.type == "mps" else residual.device  # mps has no float64
        width = stop.rows(stop.input[:1]).shape[1]
        inputs = width + (stop.bias_name is not None)
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.gram = zero.new_zeros(inputs, inputs)
        self.right = zero.new_zeros(inputs, residual.shape[1])
        self.count, self.error = zero.clone(), zero.clone()
        step = max(1, ENTRIES // (places * width))
        for low in range(begin, end, step):
            high = min(low + step, end)
            here = slice(low * places, high * places)
            missing = residual[here]
            rows = stop.rows(stop.input[low:high]).to(missing)
            if real is not None:  # padding would be fitted in place of the text
                rows, missing = rows[real[here]], missing[real[here]]
            self._add(stop, rows, missing)

    def _add(self, stop: LinearMap, rows: Tensor, missing: Tensor) -> None:
        if stop.bias_name is not None:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        alive = rows.any(0).nonzero().squeeze(1).to(self.gram.device)
        if len(alive) < rows.shape[1]:  # on small images some taps see only padding
            rows = rows[:, alive.to(rows.device)]
        self.gram[alive[:, None], alive] += product(rows.T, rows.T).to(self.gram)
        self.right[alive] += product(rows.T, missing.T).to(self.right)
        self.count += len(rows)
        self.error += missing.square().sum().to(self.error)

    def reduce(self, processes: Processes) -> None:
        """Sum over the processes."""
        for name in ("gram", "right", "count", "error"):
            setattr(self, name, processes.sum(getattr(self, name)))

    def solve(self, strength: float, bias: bool) -> Tensor:
        """Return the change of the weight (and bias), transposed: (inputs, outputs)."""
        diagonal = self.gram.diagonal()
        width = len(diagonal) - bias
        ridge = diagonal[:width].mean().expand(width)
        if bias:
            ridge = torch.cat([ridge, self.count[None]])
        alive = diagonal.nonzero().squeeze(1)  # an input that is always zero keeps its weights
        gram = self.gram[alive[:, None], alive]
        gram.diagonal().add_(strength * ridge[alive])
        factor, _ = torch.linalg.cholesky_ex(gram)
        change = torch.zeros_like(self.right)
        change[alive] = torch.cholesky_solve(self.right[alive], factor)
        return change

    def error_of(self, change: Tensor) -> float:
        """Return the squared error over these samples after a change."""
        gained = 2 * self.right - self.gram @ change
        return self.error.item() - (change * gained).sum().item()


def _refit(
    stop: LinearMap,
    parameters: Mapping[str, Tensor],
    normal: Sequence[_Normal],
    strengths: Sequence[float],
) -> None:
    """Change one map's parameters in place if that reduces the error on the held-out samples."""
    fit, held_out = normal
    best, chosen = held_out.error.item(), None
    for strength in strengths:
        change = fit.solve(strength, stop.bias_name is not None)
        error = held_out.error_of(change)
        if error < best:
            best, chosen = error, change
        elif chosen is not None:
            break
    if chosen is None:
        return
    matrix = stop.matrix(parameters[stop.name])
    inputs = matrix.shape[1]
    matrix.copy_(moved(matrix, chosen[:inputs].T))
    if stop.bias_name is not None:
        bias = parameters[stop.bias_name]
        bias.copy_(moved(bias, chosen[-1]))


def moved(parameter: Tensor, change: Tensor) -> Tensor:
    """Add a float64 change to a parameter, rounding once to its dtype.

    Args:
        parameter: Any shape.
        change: As many values, in the same order.

    Returns:
        The sum, in the parameter's dtype on its device.
    """
    wide = parameter.detach().to(change.device).to(torch.float64)
    return (wide + change.reshape(wide.shape)).to(parameter.dtype).to(parameter.device)

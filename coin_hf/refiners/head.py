"""Head refitting: refit the classifier by ridge regression on the coded model's features."""

from typing import Any

import torch
from torch import Tensor, nn

from coin_hf.networks.inputs import Inputs, batches, fit_to, repeat_first
from coin_hf.networks.linear_maps import LinearMap
from coin_hf.networks.processes import Processes
from coin_hf.refiners.lockstep import Pass, Unsuitable, passes
from coin_hf.refiners.regression import moved

STRENGTHS = tuple(10.0 ** (step / 2) for step in range(2, -9, -1))
"""Candidates of `strength: auto`: 10 ... 1e-4, two per decade."""


@torch.no_grad()
def refit_head(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    strength: float | None = None,
    batch_size: int = 64,
    accelerator: Any = None,
) -> dict[str, Tensor]:
    """Refit the last linear map to the coded outputs.

    With z the coded model's features (a 1 appended if the classifier has a bias) and W_c its
    classifier:

        W = argmin sum_l || W z_l - sum_i beta_i f_i(x_l) ||^2 + s t || W - W_c ||^2

    t is the mean of the Gram matrix's diagonal, for a bias the number of samples, so that the
    strength s is dimensionless. Unless it is given, s minimises generalised cross-validation,
    P ||(I - A) R||^2 / (P - tr A)^2 with A the smoothing matrix and R the residuals of W_c: no
    sample is held out and no label is used. One eigendecomposition of the Gram matrix of features
    or of samples, whichever is smaller, serves every s.
    Source: Golub, Heath, Wahba, Technometrics 21 (1979), eq. (1.3).

    Args:
        model: The coded model; not modified.
        inputs: Samples, shape (P, ...). With an accelerator, the same in every process.
        targets: sum_i beta_i f_i on them, shape (P, K).
        strength: s; None to choose among `STRENGTHS`.
        batch_size: Samples per forward pass.
        accelerator: An `accelerate.Accelerator` whose processes share the batches.

    Returns:
        The classifier's weight, and bias if there is one, by name. Solved in float64.

    Raises:
        Unsuitable: If the model does not end in a linear map.
    """
    last, features, logits = _features(model, inputs, batch_size, Processes.of(accelerator))
    parameters = dict(model.named_parameters())
    device = parameters[last.name].device
    device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    features = features.to(device, torch.float64)
    count, width = features.shape
    scale = features.square().mean().item() * count
    unit = (scale / count) ** 0.5 or 1.0  # value of the bias column: its ridge is then s P
    if last.bias_name is not None:
        features = torch.cat([features, torch.full_like(features[:, :1], unit)], 1)
    residual = (targets - logits).to(features)
    change = _ridge(features, residual, scale, strength)
    weight = parameters[last.name]
    matrix = moved(last.matrix(weight), change[:width].T)
    found = {last.name: (matrix.T if last.transposed else matrix).reshape(weight.shape)}
    if last.bias_name is not None:
        found[last.bias_name] = moved(parameters[last.bias_name], unit * change[-1])
    return found


def _ridge(features: Tensor, residual: Tensor, scale: float, strength: float | None) -> Tensor:
    """Solve for the change of the classifier, transposed: (inputs, K)."""
    count, width = features.shape
    dual = count < width
    values, vectors = torch.linalg.eigh(features @ features.T if dual else features.T @ features)
    values = values.clamp(min=0)
    known = values > values[-1] * max(count, width) * torch.finfo(torch.float64).eps
    values, vectors = values[known], vectors[:, known]
    basis = features.T @ vectors / values.sqrt() if dual else vectors  # (inputs, rank)
    seen = basis.T @ (features.T @ residual)  # (rank, K)
    energy = residual.square().sum()

    def score(s: float) -> float:
        shrunk = seen / (values + s * scale)[:, None]
        error = energy - 2 * (seen * shrunk).sum() + (values[:, None] * shrunk.square()).sum()
        freedom = count - (values / (values + s * scale)).sum()
        return (error / freedom.square()).item()

    s = min(STRENGTHS, key=score) if strength is None else strength
    return basis @ (seen / (values + s * scale)[:, None])


def _features(
    model: nn.Module, inputs: Inputs, batch_size: int, processes: Processes
) -> tuple[LinearMap, Tensor, Tensor]:
    """Return the last map (on one sample), its input rows, and the logits."""
    last, _, _ = _last(model, repeat_first(fit_to(inputs, model), 1))
    parts = []
    for number, batch in processes.share(list(enumerate(batches(inputs, batch_size)))):
        _, rows, logits = _last(model, fit_to(batch, model))
        parts.append((number, rows.cpu(), logits.cpu()))
    parts = sorted(processes.gather(parts), key=lambda part: part[0])
    return last, torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])


@torch.no_grad()
def find_head(model: nn.Module, inputs: Inputs) -> list[str]:
    """Find the linear map that produces the logits.

    Args:
        model: A classifier in eval mode.
        inputs: One sample or more, shape (B, ...).

    Returns:
        The names of its weight and, if there is one, its bias.

    Raises:
        Unsuitable: If the model does not end in a linear map.
    """
    last, _, _ = _last(model, fit_to(inputs, model))
    return [last.name] if last.bias_name is None else [last.name, last.bias_name]


def _last(model: nn.Module, batch: Inputs) -> tuple[LinearMap, Tensor, Tensor]:
    """Run a batch; return the last map, the input rows of its logits, and the logits."""
    with passes([Pass(model, batch)]) as [only]:
        last: tuple[LinearMap, Tensor, int] | None = None
        stop = only.go()
        while stop is not None:
            output = stop()
            last = stop, output, output._version
            stop = only.go(output)
        logits = only.logits
    if last is not None and logits is not None:
        stop, output, version = last
        taken = _taken(stop.flat(output).nan_to_num(), logits.nan_to_num())
        if taken is not None and output._version == version:  # else it was modified in place
            return stop, stop.rows(stop.input)[taken], logits
    raise Unsuitable(
        f"{type(model).__name__} does not end in a linear map: leave the refiner `head` out"
    )


def _taken(outputs: Tensor, logits: Tensor) -> Tensor | slice | None:
    """Find the rows of a map's output that are the logits: all of them, or one of each input's.

    A network that reads texts from left to right has logits at every token, and takes the last.
    """
    if outputs.shape == logits.shape:
        return slice(None) if torch.equal(outputs, logits) else None
    count, classes = logits.shape
    if outputs.shape[1] != classes or len(outputs) % count:
        return None
    match = (outputs.view(count, -1, classes) == logits[:, None]).all(-1)  # (B, T)
    if not match.any(1).all():
        return None
    places = len(outputs) // count
    return places * torch.arange(count, device=match.device) + match.float().argmax(1)

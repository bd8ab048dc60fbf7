"""Slow, obvious oracles: the paper's formulas in plain Python numbers and loops."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def merged(
    thetas: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    betas: Sequence[float],
    lam: float,
) -> dict[str, Tensor]:
    """theta_c = sum_i bbar_i (F_i + lam) theta_i / sum_i bbar_i (F_i + lam), eq. (17)."""
    coded = {}
    for name, like in thetas[0].items():
        flat_thetas = [theta[name].flatten().tolist() for theta in thetas]
        flat_fishers = [fisher[name].flatten().tolist() for fisher in fishers]
        values = []
        for entry in range(like.numel()):
            above = below = mean = 0.0
            for i, beta in enumerate(betas):
                bbar = beta * sum(betas)
                weight = bbar * (flat_fishers[i][entry] + lam)
                above += weight * flat_thetas[i][entry]
                below += weight
                mean += beta * flat_thetas[i][entry]
            values.append(above / below if below > 0 else mean)
        coded[name] = torch.tensor(values, dtype=torch.float64).reshape(like.shape)
    return coded


def mean(thetas: Sequence[Mapping[str, Tensor]], betas: Sequence[float]) -> dict[str, Tensor]:
    """sum_i beta_i theta_i."""
    averaged = {}
    for name, like in thetas[0].items():
        values = [0.0] * like.numel()
        for beta, theta in zip(betas, thetas, strict=True):
            for entry, value in enumerate(theta[name].flatten().tolist()):
                values[entry] += beta * value
        averaged[name] = torch.tensor(values, dtype=torch.float64).reshape(like.shape)
    return averaged


def encoded(outputs: Sequence[list[float]], betas: Sequence[float]) -> list[float]:
    """f_c = sum_i beta_i f_i for the logits of one input."""
    coded = [0.0] * len(outputs[0])
    for beta, logits in zip(betas, outputs, strict=True):
        for k, value in enumerate(logits):
            coded[k] += beta * value
    return coded


def decoded(
    missing: int, outputs: Sequence[list[float]], coded: list[float], betas: Sequence[float]
) -> list[float]:
    """fhat_i = (f_c - sum_{j != i} beta_j f_j) / beta_i for the logits of one input."""
    answer = []
    for k, value in enumerate(coded):
        for j, logits in enumerate(outputs):
            if j != missing:
                value -= betas[j] * logits[k]
        answer.append(value / betas[missing])
    return answer


def coding_loss(
    outputs: Sequence[Sequence[list[float]]],
    coded: Sequence[list[float]],
    betas: Sequence[float],
) -> float:
    """Mean over inputs of ||f_c - sum_i beta_i f_i||^2, eq. (5); outputs[i][l][k]."""
    total = 0.0
    for row, answer in enumerate(coded):
        target = encoded([expert[row] for expert in outputs], betas)
        for k, value in enumerate(answer):
            total += (value - target[k]) ** 2
    return total / len(coded)


def predicted(logits: list[float]) -> int:
    """The class with the largest logit, the first of equal ones."""
    best = 0
    for k, value in enumerate(logits):
        if value > logits[best]:
            best = k
    return best


def nda(answers: Sequence[int], truths: Sequence[int], own: Sequence[int]) -> float | None:
    """100 * #{decoded right} / #{expert right}, eq. (18); None if the expert never is."""
    right = own_right = 0
    for answer, truth, expert in zip(answers, truths, own, strict=True):
        right += answer == truth
        own_right += expert == truth
    return 100 * right / own_right if own_right else None


def fisher(model: nn.Module, inputs: Any, *, copies: int = 1) -> dict[str, Tensor]:
    """(1/P) sum_l sum_k (d f_k(x_l) / d theta)^2, eq. (16): one backward pass an entry of J.

    A batch is one sample, `copies` times: see `test_batch_norm_where_torchs_own_is_wrong`.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    samples = rows(inputs)
    for sample in samples:
        if copies > 1:
            sample = sample.expand(copies, *sample.shape[1:])
        output = model(**sample) if isinstance(sample, dict) else model(sample)
        logits = output if isinstance(output, Tensor) else output.logits
        for k in range(logits.shape[1]):
            gradients = torch.autograd.grad(
                logits[0, k], list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.to_dense() ** 2
    return {name: value / len(samples) for name, value in total.items()}


def fisher_by_differences(model: nn.Module, inputs: Tensor, step: float) -> dict[str, Tensor]:
    """The same by central differences, with no derivative at all; errors of order step^2."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for entry in range(parameter.numel()):
            value = float(parameter.view(-1)[entry])
            parameter.view(-1)[entry] = value + step
            above = model(inputs)
            parameter.view(-1)[entry] = value - step
            slope = (above - model(inputs)) / (2 * step)
            parameter.view(-1)[entry] = value
            total[name].view(-1)[entry] = (slope**2).sum() / len(inputs)
    return total


def rows(inputs: Any) -> list[Any]:
    """The samples of a tensor or of a dict of tensors, as batches of one."""
    if not isinstance(inputs, dict):
        return [inputs[row : row + 1] for row in range(len(inputs))]
    length = len(next(iter(inputs.values())))
    return [{name: x[row : row + 1] for name, x in inputs.items()} for row in range(length)]


def fisher_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest error of an entry, relative to the largest entry of its parameter.

    A gradient that is zero but for rounding (a key's bias under a softmax) has no digits: entries
    below 1e-20 of the model's largest one are rounding at a tolerance of 1e-10.
    """
    assert list(found) == list(expected)
    floor = 1e-10 * max(float(value.max()) for value in expected.values())
    return max(
        float((found[name] - value).abs().max()) / (float(value.max()) + floor)
        for name, value in expected.items()
    )


def task_vectors(
    thetas: Sequence[Mapping[str, Tensor]],
    foundation: Mapping[str, Tensor],
    betas: Sequence[float],
    alpha: float,
) -> dict[str, Tensor]:
    """theta_0 + alpha sum_i N beta_i (theta_i - theta_0)."""
    coded = {}
    for name, like in thetas[0].items():
        start = foundation[name].flatten().tolist()
        values = list(start)
        for beta, theta in zip(betas, thetas, strict=True):
            for entry, value in enumerate(theta[name].flatten().tolist()):
                values[entry] += alpha * len(thetas) * beta * (value - start[entry])
        coded[name] = torch.tensor(values, dtype=torch.float64).reshape(like.shape)
    return coded


def im2col(
    image: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> list[list[float]]:
    """The patches of one image (C, H, W), row by row, each in the order of a flattened weight."""
    channels, height, width = image.shape
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    rows = []
    for top in range(-padding[0], height + padding[0] - reach[0] + 1, stride[0]):
        for left in range(-padding[1], width + padding[1] - reach[1] + 1, stride[1]):
            row = []
            for c in range(channels):
                for a in range(kernel[0]):
                    for b in range(kernel[1]):
                        y, x = top + a * dilation[0], left + b * dilation[1]
                        inside = 0 <= y < height and 0 <= x < width
                        row.append(float(image[c, y, x]) if inside else 0.0)
            rows.append(row)
    return rows


def gram(rows: Sequence[Sequence[float]], samples: int) -> Tensor:
    """(1/P) sum_r x_r x_r^T."""
    n = len(rows[0])
    values = [[0.0] * n for _ in range(n)]
    for row in rows:
        for a in range(n):
            for b in range(n):
                values[a][b] += row[a] * row[b] / samples
    return torch.tensor(values, dtype=torch.float64)


def least_squares(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    betas: Sequence[float],
    scale: float,
) -> Tensor:
    """argmin_W sum_i beta_i E ||x (W - W_i)||^2 by `lstsq` over inputs[i], (P, n); (outputs, n).

    Off-diagonals scaled by a are the Gram of sqrt(a) x beside each entry alone, sqrt(1 - a) x_n.
    """
    rows, answers = [], []
    for x, w, beta in zip(inputs, weights, betas, strict=True):
        own = torch.diag(x.square().mean(0).sqrt())
        stacked = torch.cat([(beta * scale / len(x)) ** 0.5 * x, (beta * (1 - scale)) ** 0.5 * own])
        rows.append(stacked)
        answers.append(stacked @ w.T)
    found = torch.linalg.lstsq(torch.cat(rows), torch.cat(answers), driver="gelsd")
    return found.solution.T


def adamw(
    theta: list[float],
    gradient_of: Callable[[list[float], list[int]], list[float]],
    batches: Sequence[list[int]],
    *,
    lr: float,
    weight_decay: float,
) -> list[float]:
    """AdamW in plain numbers (arXiv:1711.05101, algorithm 2), torch's default momenta."""
    first, second = [0.0] * len(theta), [0.0] * len(theta)
    for step, batch in enumerate(batches, start=1):
        gradient = gradient_of(theta, batch)
        for k, g in enumerate(gradient):
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g * g
            m, v = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
            theta[k] -= lr * weight_decay * theta[k] + lr * m / (v**0.5 + 1e-8)
    return theta


@torch.no_grad()
def refitted(
    model: nn.Module,
    experts: Sequence[nn.Module],
    inputs: Any,
    *,
    betas: Sequence[float],
    strength: float,
) -> dict[str, Tensor]:
    """Refit one layer after the other, each with whole passes of its own, by least squares.

    The ridge is written as rows: sqrt(strength * mean square of an input) for each, zero wanted.
    """
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    for name in layers:
        z, _ = seen(model, name, inputs)
        targets = sum(b * seen(e, name, inputs)[1] for b, e in zip(betas, experts, strict=True))
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            z = nn.functional.unfold(
                z, layer.kernel_size, layer.dilation, layer.padding, layer.stride
            ).mT.flatten(0, 1)
            targets = targets.flatten(2).mT.flatten(0, 1)
        else:
            z, targets = z.flatten(0, -2), targets.flatten(0, -2)
        old = layer.weight.flatten(1)  # (outputs, inputs)
        ridge = torch.full((old.shape[1],), float(strength * z.square().sum(0).mean()))
        if layer.bias is not None:
            z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
            old = torch.cat([old, layer.bias[:, None]], 1)
            ridge = torch.cat([ridge, torch.tensor([strength * len(z)])])
        rows = torch.cat([z, torch.diag(ridge.to(z).sqrt())])
        wanted = torch.cat([targets - z @ old.T, torch.zeros(len(ridge), len(old)).to(z)])
        change = torch.linalg.lstsq(rows, wanted).solution.T
        layer.weight += change[:, : layer.weight[0].numel()].reshape(layer.weight.shape)
        if layer.bias is not None:
            layer.bias += change[:, -1]
    return dict(model.named_parameters())


def seen(model: nn.Module, name: str, inputs: Any) -> tuple[Tensor, Tensor]:
    """Return what goes into a layer and what comes out, in a pass of its own.

    A list of texts, each a batch of one without padding, gives the rows of all of them.
    """
    if isinstance(inputs, list):
        rows = [[x.flatten(0, -2) for x in seen(model, name, text)] for text in inputs]
        return torch.cat([z for z, _ in rows]), torch.cat([y for _, y in rows])
    found: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, i, o: found.append((i[0].clone(), o.clone())))
    model(**inputs) if isinstance(inputs, dict) else model(inputs)
    handle.remove()
    return found[0]


@torch.no_grad()
def cross_validation(features: Tensor, residual: Tensor, ridge: Tensor) -> float:
    """Generalised cross-validation of a ridge regression, with the smoothing matrix written out."""
    count = len(features)
    inverse = torch.linalg.inv(features.T @ features + torch.diag(ridge))
    smoothing = features @ inverse @ features.T
    left = residual - smoothing @ residual
    return float(count * left.square().sum() / (count - smoothing.trace()) ** 2)

"""Ridge regression of a map's change, on rows that come in parts.

With R rows X of n inputs and residuals Y, a change C of the transposed weight costs

    || X C - Y ||^2 + s sum_j t_j || C_j ||^2,

where t is the mean of the Gram matrix's diagonal, and for the bias the number of rows. Its minimum
has two forms, which need a factorization of order n or R:

    C = (X^T X + s D)^-1 X^T Y  =  D^-1 X^T (X D^-1 X^T + s I)^-1 Y,    D = diag(t).

An input that is always zero keeps its weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from coin_hf.networks.matmul import gram, product
from coin_hf.networks.processes import Processes

ENTRIES = 2**24
"""Entries of the rows multiplied at once, in their own precision; the products are summed in
float64."""


class Regression(ABC):
    """The rows of one map over some samples."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Prepare for rows.

        Args:
            inputs: n, without the bias.
            outputs: Outputs of the map.
            bias: Whether a bias is fitted too, as one more input that is always 1.
            device: Where the rows lie.
            dtype: Their precision, the same in every process.
        """
        self.bias, self.width, self.outputs = bias, inputs + bias, outputs
        place = "cpu" if device.type == "mps" else device  # mps has no float64
        self.zero = torch.zeros((), dtype=torch.float64, device=place)
        self.count, self.error = self.zero.clone(), self.zero.clone()

    def add(self, rows: Tensor, residuals: Tensor) -> None:
        """Add rows.

        Args:
            rows: Shape (R, n).
            residuals: What their outputs lack, shape (R, outputs), in the precision to compute in.
        """
        rows = rows.to(residuals)
        if self.bias:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        self.count += len(rows)
        self.error += residuals.square().sum().to(self.zero)
        self._add(rows, residuals)

    def close(self, processes: Processes) -> None:
        """Sum over the processes, after the last row.

        Args:
            processes: Those that share the samples.
        """
        self._close(processes)
        self.count, self.error = processes.sum(self.count), processes.sum(self.error)

    def ridge(self, mean: Tensor) -> Tensor:
        """Return t for each input, from the mean square sum of an input."""
        found = mean.expand(self.width - self.bias)
        return torch.cat([found, self.count[None]]) if self.bias else found

    @abstractmethod
    def _add(self, rows: Tensor, residuals: Tensor) -> None: ...

    @abstractmethod
    def _close(self, processes: Processes) -> None: ...

    @abstractmethod
    def solve(self, strength: float) -> Tensor:
        """Return C for a strength, shape (n, outputs), the bias's row last."""

    @abstractmethod
    def error_of(self, change: Tensor) -> float:
        """Return the squared error over these rows after a change."""


class NormalEquations(Regression):
    """X^T X and X^T Y, for many rows."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device, dtype=dtype)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self.gram = self.zero.new_zeros(self.width, self.width)
        self.right = self.zero.new_zeros(self.width, outputs)

    def _add(self, rows: Tensor, residuals: Tensor) -> None:
        step = max(1, ENTRIES // self.width)
        for part in zip(rows.split(step), residuals.split(step), strict=True):
            self._waiting.append(part)
            if sum(len(waiting) for waiting, _ in self._waiting) >= step:
                self._multiply()

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows, residuals = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        alive = rows.any(0).nonzero().squeeze(1).to(self.gram.device)
        if len(alive) == self.width:
            self.gram += gram(rows).to(self.gram)
            self.right += product(rows.T, residuals.T).to(self.right)
            return
        rows = rows[:, alive.to(rows.device)]  # on small images some taps see only padding
        self.gram[alive[:, None], alive] += gram(rows).to(self.gram)
        self.right[alive] += product(rows.T, residuals.T).to(self.right)

    def _close(self, processes: Processes) -> None:
        self._multiply()
        self.gram, self.right = processes.sum(self.gram), processes.sum(self.right)

    def solve(self, strength: float) -> Tensor:
        """Return C for a strength, by a factorization of order n."""
        diagonal = self.gram.diagonal()
        ridge = self.ridge(diagonal[: self.width - self.bias].mean())
        if bool(diagonal.all()):
            gram = self.gram.clone()
            gram.diagonal().add_(strength * ridge)
            return torch.cholesky_solve(self.right, torch.linalg.cholesky_ex(gram)[0])
        alive = diagonal.nonzero().squeeze(1)
        gram = self.gram[alive[:, None], alive]
        gram.diagonal().add_(strength * ridge[alive])
        factor, _ = torch.linalg.cholesky_ex(gram)
        change = torch.zeros_like(self.right)
        change[alive] = torch.cholesky_solve(self.right[alive], factor)
        return change

    def error_of(self, change: Tensor) -> float:
        """Return the squared error over these rows after a change."""
        gained = 2 * self.right - self.gram @ change
        return self.error.item() - (change * gained).sum().item()


class FewRows(Regression):
    """X and Y themselves, where they are not many more than inputs."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device, dtype=dtype)
        self._parts: list[tuple[Tensor, Tensor]] = []
        self.rows = self.residuals = torch.empty(0, device=device, dtype=dtype)
        self._prepared: tuple[Tensor, Tensor] | None = None

    def _add(self, rows: Tensor, residuals: Tensor) -> None:
        self._parts.append((rows, residuals))

    def _close(self, processes: Processes) -> None:
        counts = self.zero.new_zeros(processes.world)
        counts[processes.rank] = self.count
        counts = processes.sum(counts)
        begin, total = int(counts[: processes.rank].sum()), int(counts.sum())
        empty = self.rows.new_zeros(0, self.width), self.rows.new_zeros(0, self.outputs)
        parts = [torch.cat(each) for each in zip(*(self._parts or [empty]), strict=True)]
        self._parts = []
        self.rows, self.residuals = (_spread(part, begin, total, processes) for part in parts)

    def solve(self, strength: float) -> Tensor:
        """Return C for a strength, by a factorization of order R."""
        if self._prepared is None:
            inputs = self.width - self.bias
            squares = self.rows[:, :inputs].square().sum(1).to(self.zero).sum()
            ridge = self.ridge(squares / inputs).to(self.rows)
            # Where all inputs are zero, so is t: they stay as they are.
            scaled = self.rows / ridge.clamp(min=torch.finfo(ridge.dtype).tiny)
            self._prepared = scaled, product(scaled, self.rows).to(self.zero)
        scaled, kernel = self._prepared
        kernel = kernel.clone()
        kernel.diagonal().add_(strength)
        factor, _ = torch.linalg.cholesky_ex(kernel)
        weights = torch.cholesky_solve(self.residuals.to(self.zero), factor)
        return product(scaled.T, weights.T.to(scaled)).to(self.zero)

    def error_of(self, change: Tensor) -> float:
        """Return the squared error over these rows after a change."""
        answers = product(self.rows, change.T.to(self.rows))
        return (self.residuals - answers).square().sum(1).to(self.zero).sum().item()


def _spread(part: Tensor, begin: int, total: int, processes: Processes) -> Tensor:
    """Return the rows of all processes, of which this one has a part."""
    if processes.world == 1:
        return part
    every = part.new_zeros(total, part.shape[1])
    every[begin : begin + len(part)] = part
    return processes.sum(every)


def best_change(
    fit: Regression, held_out: Regression, strengths: Sequence[float], start: int = 0
) -> tuple[Tensor | None, int]:
    """Choose the strength with the least error on the held-out rows, from one downhill.

    Args:
        fit: The rows to fit to.
        held_out: The rows that choose.
        strengths: Candidates, ascending. From `start` they are tried towards the side where the
            error falls, until it grows again.
        start: The index of the first to try.

    Returns:
        C, or None if no strength that was tried lessens the error; and the index of the best one.
    """
    tried: dict[int, tuple[float, Tensor]] = {}

    def error(index: int) -> float:
        if index not in tried:
            change = fit.solve(strengths[index])
            found = held_out.error_of(change)
            tried[index] = found if math.isfinite(found) else math.inf, change
        return tried[index][0]

    best = start
    for step in (-1, 1):
        while 0 <= best + step < len(strengths) and error(best + step) < error(best):
            best += step
        if best < start:
            break
    return (tried[best][1] if error(best) < held_out.error.item() else None), best


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

"""The erasure code: M coded answers recover up to M missing ones."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from coin_hf.erasure.amplification import (
    BAD,
    amplification,
    check_code,
    decoder,
    worst_amplification,
)
from coin_hf.erasure.answers import check_numbers, check_shapes, numbers, weighted_sum, wide
from coin_hf.erasure.betas import Betas, rows_of, written
from coin_hf.erasure.design import design
from coin_hf.erasure.label_sets import LabelSets, check_label_sets, missing_together


class ErasureCode:
    r"""A code with M parity symbols over the outputs of N experts.

        encode   f_c     = sum_i beta_ci f_i                        for each coded model c
        decode   fhat_E  = argmin sum_c w_c || f_c - sum_i beta_ci f_i ||^2  over the missing f_E

    where the sum over c runs over the coded models that answered. With as many of them as missing
    experts it is the exact solution of a square system; for one of each,
    fhat_i = (f_c - sum_{j != i} beta_j f_j) / beta_i. With more, it is weighted least squares with
    w_c = 1 / (coding loss of c): a less accurate answer counts less. With exact f_c decoding is
    exact; the error of approximate ones is multiplied by at most `amplification`.
    Sources: arXiv:2409.01420, eqs. (1)-(3), for M = 1.

    Example:
        >>> import torch
        >>> code = ErasureCode([0.25, 0.75])
        >>> outputs = [torch.tensor([[4.0]]), torch.tensor([[8.0]])]
        >>> coded = code.encode(outputs)
        >>> code.decode({0: outputs[0]}, coded)
        {1: tensor([[8.]])}
    """

    def __init__(
        self,
        betas: Betas,
        *,
        losses: Sequence[float] | None = None,
        labels: LabelSets | None = None,
    ) -> None:
        """Set the coding weights; warn if they amplify errors 1000 times or more.

        Args:
            betas: Shape (N,) for one coded model or (M, N), N >= 2, positive, each row summing to
                1 (within 1e-6; kept as given), every square submatrix invertible.
            losses: Measured coding loss of each coded model, shape (M,), not negative, all in the
                same unit; None if unknown: all have equal weight.
            labels: The logits that each expert has, all others being zero; None if all have all.

        Raises:
            ValueError: If the betas or the losses are not valid.
        """
        self.rows = rows_of(betas)
        """Coding weights, shape (M, N)."""
        self.num_experts, self.num_coded = len(self.rows[0]), len(self.rows)
        if self.num_experts < 2:
            raise ValueError(f"an erasure code needs at least 2 experts, got {self.num_experts}")
        check_code(self.rows)
        if losses is not None and (
            len(losses) != self.num_coded or not all(0 <= loss < float("inf") for loss in losses)
        ):
            raise ValueError(
                f"losses must be {self.num_coded} finite numbers >= 0, one for each coded model, "
                f"got {list(losses)}"
            )
        self.losses = None if losses is None else tuple(float(loss) for loss in losses)
        if labels is not None:
            check_label_sets(labels, self.num_experts)
        self.labels = labels
        worst = worst_amplification(self.rows)
        if worst >= BAD:
            warnings.warn(
                f"these betas are badly conditioned: decoding multiplies a coded model's error by "
                f"up to {worst:.3g}; compare `coin-hf design --experts {self.num_experts} --coded "
                f"{self.num_coded}`",
                stacklevel=2,
            )

    @classmethod
    def design(cls, n: int, m: int = 1) -> "ErasureCode":
        """Return a code for n experts and m coded models with small worst amplification.

        Args:
            n: Number of experts, at least 2.
            m: Number of coded models, at least 1.

        Returns:
            Equal weights for m = 1, else the matrix of `coin_hf.erasure.design.design`.
        """
        return cls(design(n, m))

    @property
    def betas(self) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """The coding weights as the user writes them: shape (N,) for M = 1, else (M, N)."""
        return self.rows[0] if self.num_coded == 1 else self.rows

    def __repr__(self) -> str:
        """Show the betas."""
        return f"ErasureCode({written(self.rows)})"

    def amplification(
        self, missing: int | Sequence[int], coded: Sequence[int] | None = None
    ) -> float:
        """Return sigma_max of the matrix that decoding applies: how much it can amplify an error.

        Args:
            missing: Index of the missing expert, or indices of several.
            coded: Indices of the coded models that answer; by default all.

        Returns:
            A factor in the Euclidean norm over the experts, 0 if none is missing: 1 / sigma_min of
            the betas of those coded models for those experts, 1 / beta_i for one of each. Where
            more coded models answer than experts are missing, and losses weight them, it may be
            larger, but never above `worst_amplification`.

        Raises:
            ValueError: If an index is out of range, or fewer coded models answer than experts are
                missing.
        """
        lost = numbers([missing] if isinstance(missing, int) else missing)
        there = tuple(range(self.num_coded)) if coded is None else numbers(coded)
        check_numbers(lost, there, self.rows)
        if not lost:
            return 0.0
        if len(lost) > len(there):
            raise ValueError(f"{len(there)} coded models cannot replace experts {list(lost)}")
        if self.losses is None or len(lost) == len(there):
            return amplification(self.rows, lost, there)
        return float(np.linalg.norm(np.array(self._decoder(lost, there)), 2))

    def worst_amplification(self) -> float:
        """Return the largest amplification over all ways to lose at most M of the N + M networks.

        Returns:
            The maximum of `amplification(missing, coded)`.
        """
        return worst_amplification(self.rows)

    def encode(self, outputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """Encode the experts' answers.

        Args:
            outputs: N tensors of equal shape, such as logits (B, K), in the experts' order.

        Returns:
            `{c: sum_i beta_ci f_i}`: coded answers by index of the coded model.

        Raises:
            ValueError: If there are not N outputs.
        """
        if len(outputs) != self.num_experts:
            raise ValueError(
                f"expected the outputs of {self.num_experts} experts, got {len(outputs)}"
            )
        answers = dict(enumerate(outputs))
        dtype = outputs[0].dtype
        return {c: weighted_sum(answers, row).to(dtype) for c, row in enumerate(self.rows)}

    def decode(
        self,
        experts: Mapping[int, Tensor],
        coded: Mapping[int, Tensor],
        *,
        only: int | None = None,
    ) -> dict[int, Tensor]:
        """Compute the missing answers, on the tensors' device, in float32 or wider.

        Args:
            experts: The available answers by expert index, tensors of equal shape (B, K).
            coded: The available coded answers by index of the coded model, same shape; may be
                empty when nothing is missing.
            only: The one missing expert that is wanted; by default all.

        Returns:
            The missing answers by expert index, in the answers' dtype; empty when none is
            missing. With label sets, (B, K) with zeros where an expert has no label.

        Raises:
            ValueError: If an index is out of range, shapes differ, or there are fewer coded answers
                than missing experts.
        """
        missing = tuple(i for i in range(self.num_experts) if i not in experts)
        there = numbers(coded)
        check_numbers(numbers(experts), there, self.rows)
        if not missing:
            return {}
        self.check_decodable(missing, there, only=only)
        check_shapes(experts, coded)
        wanted = missing if only is None else (only,)
        if self.labels is None:
            every = self._recovered(missing, experts, coded)
            return {i: every[i] for i in wanted}
        found = {i: torch.zeros_like(coded[there[0]]) for i in wanted}
        for owners, rows in self.labels.groups.items():
            lost = tuple(i for i in owners if i not in experts)
            if not (mine := [i for i in wanted if i in lost]):
                continue
            here = {i: experts[i][..., rows] for i in owners if i in experts}
            answers = self._recovered(lost, here, {c: coded[c][..., rows] for c in there})
            for i in mine:
                found[i][..., rows] = answers[i]
        return found

    def check_decodable(
        self, missing: Sequence[int], coded: Sequence[int], *, only: int | None = None
    ) -> None:
        """Check that there is a coded answer for each missing expert that shares a label.

        Args:
            missing: Indices of the missing experts.
            coded: Indices of the coded models that answer.
            only: As for `decode`.

        Raises:
            ValueError: If there are too few, which says of which experts.
        """
        for lost in missing_together(self.labels, self.num_experts, missing, len(coded)):
            if only is None or only in lost:
                answered = [i for i in range(self.num_experts) if i not in missing]
                raise ValueError(
                    f"cannot decode experts {lost} from experts {answered} and coded models "
                    f"{list(coded)}: one coded model replaces one missing expert"
                    + ("" if self.labels is None else " of those that share a label")
                )

    def _recovered(
        self, missing: tuple[int, ...], experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """Solve for the missing answers; experts that are neither are zero there."""
        there = numbers(coded)
        dtype = coded[there[0]].dtype
        rests = {c: self._rest(c, experts, coded[c]) for c in there}
        if len(missing) == len(there) == 1:
            c, i = there[0], missing[0]
            return {i: (rests[c] / self.rows[c][i]).to(dtype)}
        matrix = self._decoder(missing, there)
        return {
            i: weighted_sum(rests, dict(zip(there, row, strict=True))).to(dtype)
            for i, row in zip(missing, matrix, strict=True)
        }

    def residual(self, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]) -> Tensor:
        """Return the parity residual of complete answers: large where an answer is corrupted.

            r^2 = mean over c of ||f_c - sum_i beta_ci f_i||^2 / (coding loss of c)

        It detects a corrupted answer but does not locate it. On answers as accurate as those on
        which the losses were measured, r^2 is 1 on average.

        Args:
            experts: The answers of all N experts by index, tensors of equal shape (B, K).
            coded: At least one coded answer by index, same shape.

        Returns:
            r, shape (B,), in float32 or wider; in units of logits where the losses are unknown.

        Raises:
            ValueError: If an expert's answer is missing, there is no coded one, an index is out of
                range or shapes differ.
        """
        there = numbers(coded)
        check_numbers(numbers(experts), there, self.rows)
        if len(experts) < self.num_experts or not there:
            raise ValueError(
                f"the check needs the answers of all {self.num_experts} experts and one coded "
                f"model, got experts {sorted(experts)} and coded models {list(there)}"
            )
        check_shapes(experts, coded)
        total = None
        for c in there:
            loss = 1.0 if self.losses is None else max(self.losses[c], 1e-30)
            square = self._rest(c, experts, coded[c]).square().flatten(1).sum(1) / loss  # (B,)
            total = square if total is None else total + square
        assert total is not None  # at least one coded answer came
        return (total / len(there)).sqrt()

    def _rest(self, c: int, experts: Mapping[int, Tensor], answer: Tensor) -> Tensor:
        """Return f_c - sum beta_ci f_i over the available experts: the missing ones' share."""
        if not experts:
            return wide(answer)
        return wide(answer) - weighted_sum(experts, self.rows[c])

    @torch.compiler.assume_constant_result  # depends on the pattern alone
    def _decoder(
        self, missing: tuple[int, ...], there: tuple[int, ...]
    ) -> tuple[tuple[float, ...], ...]:
        return decoder(self.rows, self.losses, missing, there)

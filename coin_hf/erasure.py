"""The erasure code: one coded answer and the answers that came give the missing one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coin_hf.betas import check_betas


class ErasureCode:
    r"""A code with one parity symbol over the outputs of N experts.

        encode   f_c     = sum_i beta_i f_i
        decode   fhat_i  = (f_c - sum_{j != i} beta_j f_j) / beta_i

    With an exact f_c, decoding any one missing expert is exact; with the coded model's
    approximate one, its error is multiplied by `amplification(i)` = 1 / beta_i.
    Source: arXiv:2409.01420, eqs. (1)-(3).

    Example:
        >>> import torch
        >>> code = ErasureCode([0.25, 0.75])
        >>> outputs = [torch.tensor([[4.0]]), torch.tensor([[8.0]])]
        >>> coded = code.encode(outputs)
        >>> code.decode({0: outputs[0]}, coded)
        {1: tensor([[8.]])}
    """

    def __init__(self, betas: Sequence[float]) -> None:
        """Take the coding weights.

        Args:
            betas: Shape (N,), N >= 2, positive, summing to 1 (within 1e-6; kept as given).

        Raises:
            ValueError: If they are fewer than two, not positive, or do not sum to 1.
        """
        self.betas = tuple(float(beta) for beta in betas)
        if len(self.betas) < 2:
            raise ValueError(f"an erasure code needs at least 2 experts, got {len(self.betas)}")
        check_betas(self.betas, len(self.betas))

    def __repr__(self) -> str:
        """Show the betas."""
        return f"ErasureCode({list(self.betas)})"

    def amplification(self, missing: int) -> float:
        """Return 1 / beta_i, the factor from the coded answer's error to the decoded one's."""
        return 1 / self.betas[missing]

    def encode(self, outputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """Code the experts' answers.

        Args:
            outputs: N tensors of equal shape, such as logits (B, K), in the experts' order.

        Returns:
            `{0: sum_i beta_i f_i}`: coded answers by the number of their coded model.

        Raises:
            ValueError: If there are not N outputs.
        """
        if len(outputs) != len(self.betas):
            raise ValueError(
                f"expected the outputs of {len(self.betas)} experts, got {len(outputs)}"
            )
        coded = _weighted_sum(dict(enumerate(outputs)), self.betas)
        return {0: coded.to(outputs[0].dtype)}

    def decode(
        self, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """Compute the missing answer.

        Args:
            experts: The answers that came, by expert number, tensors of equal shape (B, K).
            coded: `{0: f_c}`, or empty when nothing is missing.

        Returns:
            The missing answers by expert number; empty when none is missing.

        Raises:
            ValueError: If an expert number is out of range, or more than one is missing, or one
                is missing and the coded answer is too.
        """
        n = len(self.betas)
        unknown = sorted(set(experts) - set(range(n)))
        if unknown:
            raise ValueError(f"there is no expert {unknown[0]}: they are numbered 0 to {n - 1}")
        missing = [i for i in range(n) if i not in experts]
        if not missing:
            return {}
        if len(missing) > 1 or 0 not in coded:
            raise ValueError(
                f"cannot decode experts {missing} from experts {sorted(experts)} and coded models "
                f"{sorted(coded)}: one coded model replaces one missing expert"
            )
        i = missing[0]
        answer = (_wide(coded[0]) - _weighted_sum(experts, self.betas)) / self.betas[i]
        return {i: answer.to(coded[0].dtype)}


def _weighted_sum(outputs: Mapping[int, Tensor], betas: Sequence[float]) -> Tensor:
    """Sum beta_i f_i over the experts present, in their order, in float32 or better."""
    first, *rest = sorted(outputs)
    total = betas[first] * _wide(outputs[first])
    for i in rest:
        total = total + betas[i] * _wide(outputs[i])
    return total


def _wide(output: Tensor) -> Tensor:
    """Widen half precision: decoding would amplify its rounding at every step."""
    return output.to(torch.promote_types(output.dtype, torch.float32))

"""Decode one answer from those that arrived, with what a coded repository records alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from coin_hf.erasure.alone import closest_coded
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import missing_together
from coin_hf.experts.heads import columns
from coin_hf.records.coin import ClassOrder, CoinRecord


class Decoding(Protocol):
    """How a router's experts are answered for by others: by decoding, by replicas, by a standby."""

    def helpers(self, expert: int) -> tuple[int, ...]:
        """Return the other experts whose answers it takes."""
        ...

    def parities(self, expert: int) -> tuple[int, ...]:
        """Return the additional networks that it may take."""
        ...

    def suffices(self, expert: int, experts: Collection[int], coded: Collection[int]) -> bool:
        """Say whether answers suffice."""
        ...

    def decode(
        self, expert: int, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
    ) -> Tensor:
        """Compute the answer, shape (B, K_i)."""
        ...

    def alone(self, expert: int, coded: Mapping[int, Tensor]) -> tuple[int, Tensor]:
        """Choose an additional network that answers alone; return its index and (B, K_i)."""
        ...


@dataclass(frozen=True)
class Decoder:
    """Which answers suffice for an expert's, and the answer that they give."""

    code: ErasureCode
    orders: tuple[ClassOrder | None, ...]
    """The rows of each expert's classes; None where they are its own head's."""

    @classmethod
    def of(cls, coin: CoinRecord) -> "Decoder":
        """Read the code from a coded repository's record.

        Args:
            coin: The content of `coin.json`.

        Returns:
            The decoder.
        """
        losses = None if coin.calibration is None else coin.calibration.losses
        weights = coin.recipe.coding_weights
        code = ErasureCode(weights, losses=losses, labels=coin.label_sets)
        return cls(code, tuple(expert.class_order for expert in coin.experts))

    def helpers(self, expert: int) -> tuple[int, ...]:
        """Return the other experts whose answers decoding takes: those that share a label.

        Args:
            expert: Index of the expert.

        Returns:
            Their indices, ascending.
        """
        if self.code.labels is not None:
            return self.code.labels.sharing(expert)
        return tuple(j for j in range(self.code.num_experts) if j != expert)

    def parities(self, expert: int) -> tuple[int, ...]:
        """Return the coded models that an expert may be decoded from: all of them.

        Args:
            expert: Index of the expert.

        Returns:
            Their indices, ascending.
        """
        return tuple(range(self.code.num_coded))

    def suffices(self, expert: int, experts: Collection[int], coded: Collection[int]) -> bool:
        """Say whether answers suffice to decode an expert's.

        Args:
            expert: Index of the expert.
            experts: Indices of the experts that answered.
            coded: Indices of the coded models that answered.

        Returns:
            Whether no label of it is asked of more missing experts than coded models answered.
        """
        count = self.code.num_experts
        missing = [i for i in range(count) if i not in experts]
        together = missing_together(self.code.labels, count, missing, len(coded))
        return not any(expert in lost for lost in together)

    def decode(
        self, expert: int, experts: Mapping[int, Tensor], coded: Mapping[int, Tensor]
    ) -> Tensor:
        """Decode an expert's answer.

        Args:
            expert: Index of the expert.
            experts: Logits (B, K_i) of the experts that answered, each in its own order.
            coded: Logits (B, K) of the coded models that answered.

        Returns:
            Logits (B, K_i) of the expert's own classes in its own order.

        Raises:
            ValueError: If the answers do not suffice or have other shapes.
        """
        rows = {i: columns(answer, self.orders[i], "own") for i, answer in experts.items()}
        found = self.code.decode(rows, coded, only=expert)[expert]
        return columns(found, self.orders[expert], "rows")

    def alone(self, expert: int, coded: Mapping[int, Tensor]) -> tuple[int, Tensor]:
        """Answer for an expert by the coded model that weights it most.

        Args:
            expert: Index of the expert.
            coded: Logits (B, K) of the coded models that answered, at least one.

        Returns:
            The index of the one that is taken, and its logits (B, K_i) of the expert's own classes
            in its own order: for their argmax alone, as they estimate sum_j beta_j f_j.
        """
        c = closest_coded(self.code.rows, expert, coded)
        return c, columns(coded[c], self.orders[expert], "rows")

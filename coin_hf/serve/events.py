"""What a router reports while it answers."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

How = Literal["direct", "decoded", "alone"]
Suppressed = Literal["busy", "tokens"]


@dataclass(frozen=True, eq=False)
class Reply:
    """One expert's answer."""

    expert: str
    logits: Tensor
    """Raw logits of its own classes in its own order, shape (K_i,)."""
    how: How
    """`direct`: its own; `decoded`: computed from the others'; `alone`: a coded model's own, for
    its argmax alone, as it estimates sum_j beta_j f_j."""
    hedged: bool
    """Whether others were asked for it because it was late or failed."""
    used: tuple[str, ...]
    """The networks whose answers it was made of."""
    missing: tuple[str, ...]
    """Experts that were asked and had not answered."""
    seconds: float


class Observer:
    """Listens to a router's events, and does nothing with them; others override what they hear."""

    def answered(self, reply: Reply) -> None:
        """Note an answer."""

    def failed(self, expert: str, error: BaseException) -> None:
        """Note a request without an answer."""

    def hedged(self, expert: str, reason: str) -> None:
        """Note that others were asked: the expert is `late`, `failed`, `down` or `asked` about."""

    def suppressed(self, expert: str, reason: Suppressed) -> None:
        """Note a hedge that was not made: helpers `busy`, or no `tokens` left."""

    def cancelled(self, network: str) -> None:
        """Note a request to a network that nobody waits for any more."""

    def wasted(self, network: str) -> None:
        """Note an answer that came too late to be used."""

    def agreed(self, expert: str, same: bool) -> None:
        """Note whether a decoded and a direct answer that both arrived name the same class."""

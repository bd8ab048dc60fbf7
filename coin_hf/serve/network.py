"""What the router asks: a network that answers one input, wherever it runs."""

from typing import Any, Protocol

from torch import Tensor


class Network(Protocol):
    """One expert or coded model, as the router sees it."""

    name: str

    @property
    def stops(self) -> bool:
        """Whether a cancelled request ends there; else its slot stays taken until it is done."""
        ...

    @property
    def waiting(self) -> int:
        """The number of requests in work, waiting ones included; 0 if it is idle."""
        ...

    async def ask(self, x: Any) -> Tensor:
        """Answer one input.

        Args:
            x: The input, in the form that all networks of a router take.

        Returns:
            Raw logits, shape (K,).

        Raises:
            Exception: Whatever keeps it from answering; the router takes all for a failure.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


class Unanswered(Exception):
    """No answer: every way to it failed."""


class Late(Unanswered):
    """No answer in the time that a request has."""


class Overloaded(Unanswered):
    """Refused, so that others are answered in time."""


class Refused(Unanswered):
    """Only a decoded answer could be had, which the caller refuses."""

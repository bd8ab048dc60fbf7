"""A network behind a deployment of Ray Serve, as the router sees it."""

import asyncio

from ray import serve
from torch import Tensor

from coin_hf.serve.question import Question
from coin_hf.serve.race import Kind

APP = "coin-hf"
"""Name of the application on Ray Serve."""


def deployment_name(kind: Kind, number: int) -> str:
    """Name the deployment of a network.

    Args:
        kind: An expert or a coded model.
        number: Its index.

    Returns:
        Such as `expert-0`.
    """
    return f"{kind}-{number}"


class RayNetwork:
    """A network behind a deployment of Ray Serve."""

    stops = True

    def __init__(self, name: str, kind: Kind, number: int) -> None:
        """Get the deployment's handle; it must run where the router runs.

        Args:
            name: The network's name.
            kind: An expert or a coded model.
            number: Its index.
        """
        self.name = name
        self._handle = serve.get_deployment_handle(deployment_name(kind, number), app_name=APP)
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """The number of requests in work, as far as they are of this router."""
        return self._waiting

    async def ask(self, x: Question) -> Tensor:
        """Answer one input.

        Args:
            x: The input.

        Returns:
            Raw logits, shape (K,).

        Raises:
            CancelledError: If the request is given up; it is cancelled in the deployment too.
        """
        response = self._handle.answer.remote(x.prepared)
        self._waiting += 1
        try:
            answer: Tensor = await response
            return answer
        except asyncio.CancelledError:
            response.cancel()
            raise
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Hold nothing."""

"""Networks behind other servers that speak the Hugging Face inference JSON of their task."""

import base64
from collections.abc import Sequence
from typing import Any

import aiohttp
from torch import Tensor

from coin_hf.serve.answers import logits_of
from coin_hf.serve.question import Question, Task


class RemoteNetwork:
    """A network behind an address: `function_to_apply: none, top_k: K` returns its raw logits."""

    stops = True

    def __init__(
        self,
        name: str,
        url: str,
        labels: Sequence[str],
        task: Task,
        seconds: float,
        token: str | None = None,
    ) -> None:
        """Set up a client; it connects when it is asked.

        Args:
            name: The network's name.
            url: Its address.
            labels: Its K class names, in the order of its logits.
            task: What it classifies.
            seconds: The longest that a request may take.
            token: Bearer token that is sent to the address; None for none.
        """
        self.name, self._url, self._labels, self._task = name, url, tuple(labels), task
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """The number of requests in work, as far as they are of this process."""
        return self._waiting

    async def ask(self, x: Question) -> Tensor:
        """Answer one input.

        Args:
            x: The input, which the server preprocesses.

        Returns:
            Raw logits, shape (K,).

        Raises:
            ClientError: If it cannot be reached or answers with an error.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        raw = x.raw
        sent: dict[str, Any] = {
            "inputs": base64.b64encode(raw).decode("ascii") if isinstance(raw, bytes) else raw,
            "parameters": {"function_to_apply": "none", "top_k": len(self._labels)},
        }
        self._waiting += 1
        try:
            async with self._session.post(self._url, json=sent, allow_redirects=False) as response:
                response.raise_for_status()
                return logits_of(await response.json(), self._labels)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

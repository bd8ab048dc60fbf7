"""The metrics of all routers on Ray Serve: whichever of them is asked tells of all."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from prometheus_client.metrics_core import Metric
from ray import serve

from coin_hf.serve.metrics import Aggregator
from coin_hf.serve.ray_network import APP

METRICS = "metrics"
"""Name of its deployment."""
PATIENCE = 2.0
"""Seconds until a router tells of its own metrics alone."""


class Collected:
    """The deployment: what each router gave last. One that ended is kept: its counts happened."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._held: dict[str, Sequence[Metric]] = {}

    async def exchange(
        self, router: str, families: Sequence[Metric]
    ) -> dict[str, Sequence[Metric]]:
        """Take a router's metrics; return those of all.

        Args:
            router: Its name.
            families: Its metrics.

        Returns:
            The metrics by router.
        """
        self._held[router] = families
        return self._held


class RayAggregator(Aggregator):
    """The deployment, as a router sees it."""

    def __init__(self) -> None:
        """Get its handle; it must run where the router runs."""
        self._handle = serve.get_deployment_handle(METRICS, app_name=APP)
        self._router = serve.get_replica_context().replica_id.unique_id

    async def exchange(self, families: Sequence[Metric]) -> Mapping[str, Sequence[Metric]]:
        """Give this router's metrics, and get those of all; else its own."""
        with suppress(Exception):
            response = self._handle.exchange.remote(self._router, families)
            found: Mapping[str, Sequence[Metric]] = await asyncio.wait_for(response, PATIENCE)
            return found
        return {self._router: families}

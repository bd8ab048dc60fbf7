"""A router over a target's networks, with all that its answers need."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client.metrics_core import Metric

import coin_hf
from coin_hf.errors import InputError
from coin_hf.experts.text_preprocessing import TextPreprocessing
from coin_hf.serve.decoder import Decoder
from coin_hf.serve.local import LocalNetwork
from coin_hf.serve.measured import measured_ndas
from coin_hf.serve.metrics import Aggregator, Metrics, text_of
from coin_hf.serve.network import Network
from coin_hf.serve.remote import RemoteNetwork
from coin_hf.serve.router import Router
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.target import Target, coded_names, token_of

THREADS = 2
"""Threads that decode and preprocess inputs."""
REPORTED = 1.0
"""Seconds between a router's reports to what all routers share."""


class Service:
    """A router over a target's networks, with all that its answers need."""

    def __init__(self, target: Target, settings: ServeSettings) -> None:
        """Set up networks and router; it must be made where its event loop runs.

        Args:
            target: What is served.
            settings: How.

        Raises:
            InputError: If the networks are not loaded.
        """
        self.target, self.settings, self.metrics = target, settings, Metrics()
        self.names = [expert.name for expert in target.coin.experts]
        self.in_work = 0
        self.preparing = ThreadPoolExecutor(THREADS, thread_name_prefix="coin-hf prepare")
        experts, coded = networks(target, settings)
        decoder = Decoder.of(target.coin)
        self.router = Router(experts, coded, decoder, settings, self.metrics)
        self.ndas = measured_ndas(target.coin, target.result)
        self.aggregator: Aggregator = Aggregator()
        self._reporting: asyncio.Task[None] | None = None
        if settings.backend == "ray" and settings.routers > 1:
            from coin_hf.serve.ray_metrics import RayAggregator

            self.aggregator = RayAggregator()
            self._reporting = asyncio.ensure_future(self._report())

    def expert(self, name: str) -> int:
        """Return the index of an expert.

        Args:
            name: Its name, or its index as text.

        Returns:
            Its index.

        Raises:
            KeyError: If there is none.
        """
        if name in self.names:
            return self.names.index(name)
        return {str(i): i for i in range(len(self.names))}[name]

    @property
    def ready(self) -> bool:
        """Whether every expert can be answered for: it is up, can be decoded, or need not be."""
        if self.settings.alone is not None:
            return True
        up = {i for i, breaker in enumerate(self.router.state.breakers) if not breaker.open}
        decoder, coded = self.router.state.decoder, range(len(self.router.state.coded))
        return all(i in up or decoder.suffices(i, up, coded) for i in range(len(self.names)))

    def info(self) -> dict[str, Any]:
        """Describe what is served, as plain data."""
        coin = self.target.coin
        return {
            "version": coin_hf.__version__,
            "task": self.target.task,
            "coder": coin.coder,
            "betas": coin.betas,
            "backend": self.settings.backend,
            "experts": [
                {
                    "name": name,
                    "model": record.model,
                    "revision": record.revision,
                    "labels": list(labels),
                    "nda": self.ndas.get((name, "decoded")),
                    "decoded_from": [self.names[j] for j in self.router.state.decoder.helpers(i)],
                    "down": self.router.state.breakers[i].open,
                    "deadline_seconds": self.router.state.deadlines[i].seconds,
                }
                for i, (name, record, labels) in enumerate(
                    zip(self.names, coin.experts, self.target.labels, strict=True)
                )
            ],
            "coded_models": [network.name for network in self.router.state.coded],
        }

    async def measured(self) -> bytes:
        """Return the metrics in Prometheus' text format: of all routers, where they are shared."""
        return text_of(await self.aggregator.exchange(self._families()))

    def _families(self) -> list[Metric]:
        """Return this router's metrics."""
        for name, breaker, deadline in zip(
            self.names, self.router.state.breakers, self.router.state.deadlines, strict=True
        ):
            self.metrics.breakers.labels(name).set(breaker.open)
            self.metrics.deadlines.labels(name).set(deadline.seconds)
        return self.metrics.families()

    async def _report(self) -> None:
        """Keep what all routers share up to date, whichever of them is asked for it."""
        while True:
            await asyncio.sleep(REPORTED)
            await self.aggregator.exchange(self._families())

    async def close(self) -> None:
        """Let what runs come to its end, and give everything back."""
        if self._reporting is not None:
            self._reporting.cancel()
        await self.router.close()
        self.preparing.shutdown(wait=True)


def networks(target: Target, settings: ServeSettings) -> tuple[list[Network], list[Network]]:
    """Make the networks of a backend.

    Args:
        target: What is served.
        settings: Backend, batches, addresses.

    Returns:
        The experts and the coded models.

    Raises:
        InputError: If the networks are not loaded.
    """
    names = [expert.name for expert in target.coin.experts]
    coded = coded_names(target)
    if settings.backend == "remote":
        urls = dict(settings.urls or {})
        seconds, token = settings.limits.seconds, token_of(settings)
        return (
            [
                RemoteNetwork(name, urls[name], labels, target.task, seconds, token)
                for name, labels in zip(names, target.labels, strict=True)
            ],
            [
                RemoteNetwork(name, urls[name], target.rows, target.task, seconds, token)
                for name in coded
            ],
        )
    if settings.backend == "ray":
        from coin_hf.serve.ray_network import RayNetwork

        return (
            [RayNetwork(name, "expert", i) for i, name in enumerate(names)],
            [RayNetwork(name, "coded", c) for c, name in enumerate(coded)],
        )
    ensemble = target.ensemble
    if ensemble is None or ensemble.experts is None:
        raise InputError("the networks are not loaded: open the target for the backend `local`")
    most, preprocessing = settings.batch.most, ensemble.coded.preprocessing
    padded = preprocessing.padded if isinstance(preprocessing, TextPreprocessing) else None
    return (
        [
            LocalNetwork(
                expert.name, expert.model, order=expert.class_order, most=most, padded=padded
            )
            for expert in ensemble.experts
        ],
        [
            LocalNetwork(name, each.model, most=most, padded=padded)
            for name, each in zip(coded, ensemble.coded_models, strict=True)
        ],
    )

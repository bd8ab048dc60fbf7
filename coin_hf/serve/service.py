"""What is served: a coded repository's networks behind a router, wherever they run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import coin_hf
from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.experts.merged_config import JOINED
from coin_hf.experts.text_preprocessing import TextPreprocessing, preprocessed
from coin_hf.hub.layout import coded_folder
from coin_hf.records.coin import CoinRecord
from coin_hf.reports.result import Result
from coin_hf.serve.decoder import Decoder
from coin_hf.serve.local import LocalNetwork
from coin_hf.serve.measured import measured_ndas
from coin_hf.serve.metrics import Metrics
from coin_hf.serve.network import Network
from coin_hf.serve.question import Task
from coin_hf.serve.remote import RemoteNetwork
from coin_hf.serve.router import Router
from coin_hf.serve.settings import ServeSettings

THREADS = 2
"""Threads that decode and preprocess inputs."""


@dataclass(frozen=True, eq=False)
class Target:
    """A coded repository to serve, as far as its backend needs it."""

    coin: CoinRecord
    result: Result
    labels: tuple[tuple[str, ...], ...]
    """Each expert's class names in its own order."""
    rows: tuple[str, ...]
    """The class names of the coded models' logits."""
    task: Task
    num_coded: int
    """M."""
    prepare: Callable[[Any], Any] | None
    """Image or text -> the networks' input; None where other servers preprocess."""
    ensemble: CodedEnsemble | None
    """The networks, if they run here."""


def open_target(repo: str, settings: ServeSettings, revision: str | None = None) -> Target:
    """Load a coded repository, with its experts where they run in this process.

    Args:
        repo: Folder or Hub id.
        settings: How it is served.
        revision: Its revision on the Hub.

    Returns:
        The repository.

    Raises:
        InputError: If it cannot be read, or the recipe's device is not there.
    """
    here = settings.backend == "local"
    device = _device(settings.device) if here else "cpu"
    ensemble = CodedEnsemble.from_pretrained(repo, revision, experts=here, device=device)
    preprocessing = ensemble.coded.preprocessing  # without the networks, if they run elsewhere
    rows = ensemble.coded.label_names or _numbered(ensemble.coded.num_classes)
    if not here:
        _check_names(ensemble)
    orders = [expert.class_order for expert in ensemble.coin.experts]
    counts = [len(rows) if order is None else len(order.rows) for order in orders]
    labels = [
        names or _numbered(count) for names, count in zip(ensemble.label_names, counts, strict=True)
    ]
    return Target(
        coin=ensemble.coin,
        result=ensemble.result,
        labels=tuple(labels),
        rows=tuple(rows),
        task=ensemble.coin.task or "image-classification",
        num_coded=len(ensemble.coded_models),
        prepare=None if settings.backend == "remote" else partial(preprocessed, preprocessing),
        ensemble=ensemble if here else None,
    )


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

    def measured(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        for name, breaker, deadline in zip(
            self.names, self.router.state.breakers, self.router.state.deadlines, strict=True
        ):
            self.metrics.breakers.labels(name).set(breaker.open)
            self.metrics.deadlines.labels(name).set(deadline.seconds)
        return self.metrics.text()

    async def close(self) -> None:
        """Let what runs come to its end, and give everything back."""
        await self.router.close()
        self.preparing.shutdown(wait=True)


def check_places(target: Target, settings: ServeSettings) -> None:
    """Check that the settings say where each network answers.

    Args:
        target: What is served.
        settings: Its backend and addresses.

    Raises:
        InputError: If a network has no address, or an address no network.
    """
    for labels in (*target.labels, target.rows):
        if settings.backend == "remote" and len(set(labels)) < len(labels):
            raise InputError(
                "two classes have one name, so that another server's answer cannot be read: tell "
                "them apart by `labels` in the recipe, or serve with the backend local"
            )
    urls = settings.urls or {}
    names = [*(expert.name for expert in target.coin.experts), *coded_names(target)]
    if settings.backend == "remote" and urls.keys() != set(names):
        raise InputError(
            f"`urls` must say where {', '.join(names)} answer, it names {', '.join(urls) or 'none'}"
        )


def coded_names(target: Target) -> list[str]:
    """Name the coded models: `coded`, `coded-1`, ... as their folders.

    Args:
        target: What is served.

    Returns:
        M names.
    """
    return [coded_folder(c) if c else "coded" for c in range(target.num_coded)]


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
        seconds = settings.limits.seconds
        return (
            [
                RemoteNetwork(name, urls[name], labels, target.task, seconds)
                for name, labels in zip(names, target.labels, strict=True)
            ],
            [RemoteNetwork(name, urls[name], target.rows, target.task, seconds) for name in coded],
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


def _check_names(ensemble: CodedEnsemble) -> None:
    """Refuse class names that stand for several experts', where theirs cannot be asked."""
    for record, names in zip(ensemble.coin.experts, ensemble.label_names, strict=True):
        if record.labels is None and any(JOINED in name for name in names or ()):
            raise InputError(
                f"the repository does not record the class names of expert '{record.name}', only "
                "joined ones: encode it again, or serve it with the backend local"
            )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{k}" for k in range(count))


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"there is no device '{name}' here: take cpu, or install its torch"
        ) from error
    return name

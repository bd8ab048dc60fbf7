"""What is served: a coded repository, as far as its backend needs it in this process."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure.betas import rows_of
from coin_hf.errors import InputError
from coin_hf.experts.checkpoint import read_config
from coin_hf.experts.merged_config import JOINED, classes_in, nested
from coin_hf.experts.recorded import recorded_names
from coin_hf.experts.text_preprocessing import preprocessed
from coin_hf.hub.client import locate
from coin_hf.hub.layout import COIN_FILE, RESULT_FILE, coded_folder
from coin_hf.records.coin import CoinRecord
from coin_hf.reports.result import Result
from coin_hf.repository.folder import read_records
from coin_hf.serve.question import Task
from coin_hf.serve.settings import ServeSettings


@dataclass(frozen=True, eq=False)
class Target:
    """A coded repository to serve, as far as its backend needs it."""

    coin: CoinRecord
    result: Result
    labels: tuple[tuple[str, ...], ...]
    """Each expert's class names in its own order."""
    rows: tuple[str, ...]
    """The class names of the coded models' logits."""
    prepare: Callable[[Any], Any] | None = None
    """Image or text -> the networks' input; None where other servers preprocess."""
    ensemble: CodedEnsemble | None = None
    """The networks, if they run here."""

    @property
    def task(self) -> Task:
        """What the networks classify."""
        return self.coin.task or "image-classification"

    @property
    def num_coded(self) -> int:
        """M."""
        return len(rows_of(self.coin.betas))


def open_target(repo: str, settings: ServeSettings, revision: str | None = None) -> Target:
    """Open a coded repository, and load what runs in this process.

    That is all networks for `local`, the preprocessing for `ray`; for `remote` the records are
    read alone, and no weights are downloaded.

    Args:
        repo: Folder or Hub id.
        settings: How it is served.
        revision: Its revision on the Hub.

    Returns:
        The repository.

    Raises:
        InputError: If it cannot be read, or the recipe's device is not there.
    """
    if settings.backend == "remote":
        return _records_alone(repo, revision)
    here = settings.backend == "local"
    device = _device(settings.device) if here else "cpu"
    ensemble = CodedEnsemble.from_pretrained(repo, revision, experts=here, device=device)
    preprocessing = ensemble.coded.preprocessing  # without the networks, if they run elsewhere
    rows, coin = ensemble.coded.label_names, ensemble.coin
    if not here:
        _check_names(coin, rows)
    return Target(
        coin=coin,
        result=ensemble.result,
        labels=_labels(coin, ensemble.label_names, ensemble.coded.num_classes),
        rows=rows or _numbered(ensemble.coded.num_classes),
        prepare=partial(preprocessed, preprocessing),
        ensemble=ensemble if here else None,
    )


def _records_alone(repo: str, revision: str | None) -> Target:
    """Read what a router needs to know of networks that other servers run and preprocess for."""
    folder = locate(repo, revision, ["config.json", COIN_FILE, RESULT_FILE])
    coin, result = read_records(folder, repo)
    count, rows = classes_in(nested(read_config(folder, "coded model")), coin.library)
    _check_names(coin, rows)
    names = [recorded_names(expert, rows) for expert in coin.experts]
    return Target(coin, result, _labels(coin, names, count), rows or _numbered(count))


def _labels(
    coin: CoinRecord, names: list[tuple[str, ...] | None], count: int
) -> tuple[tuple[str, ...], ...]:
    """Name the classes of each expert, by number where they have no names."""
    orders = [expert.class_order for expert in coin.experts]
    counts = [count if order is None else len(order.rows) for order in orders]
    return tuple(found or _numbered(k) for found, k in zip(names, counts, strict=True))


def check_places(target: Target, settings: ServeSettings) -> None:
    """Check that the settings say where each network answers.

    Args:
        target: What is served.
        settings: Its backend and addresses.

    Raises:
        InputError: If a network has no address, or an address no network, or the token is missing.
    """
    for labels in (*target.labels, target.rows):
        if settings.backend == "remote" and len(set(labels)) < len(labels):
            raise InputError(
                "two classes have one name, so that another server's answer cannot be read: tell "
                "them apart by `labels` in the recipe, or serve with the backend local"
            )
    token_of(settings)
    urls = settings.urls or {}
    names = [*(expert.name for expert in target.coin.experts), *coded_names(target)]
    if settings.backend == "remote" and urls.keys() != set(names):
        raise InputError(
            f"`urls` must say where {', '.join(names)} answer, it names {', '.join(urls) or 'none'}"
        )


def token_of(settings: ServeSettings) -> str | None:
    """Return the bearer token for other servers.

    Args:
        settings: They name the environment variable that holds it.

    Returns:
        The token; None if none is named.

    Raises:
        InputError: If the variable is not set.
    """
    name = settings.token_variable
    if name is None:
        return None
    if not (token := os.environ.get(name)):
        raise InputError(
            f"the environment variable {name}, which `token_variable` names, is not set"
        )
    return token


def coded_names(target: Target) -> list[str]:
    """Name the coded models: `coded`, `coded-1`, ... as their folders.

    Args:
        target: What is served.

    Returns:
        M names.
    """
    return [coded_folder(c) if c else "coded" for c in range(target.num_coded)]


def _check_names(coin: CoinRecord, rows: tuple[str, ...] | None) -> None:
    """Refuse class names that stand for several experts', where theirs cannot be asked."""
    for record in coin.experts:
        names = recorded_names(record, rows) or ()
        if record.labels is None and any(JOINED in name for name in names):
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

"""Ray Serve: one deployment for each expert and coded model, the router as ingress."""

import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil
import ray
import torch
import yaml
from ray import serve
from ray.serve import Application
from torch import Tensor

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.experts.recorded import load_recorded
from coin_hf.experts.text_preprocessing import TextPreprocessing
from coin_hf.repository.paths import place_of
from coin_hf.serve.http import make_app
from coin_hf.serve.local import LocalNetwork
from coin_hf.serve.question import Question
from coin_hf.serve.race import Kind
from coin_hf.serve.ray_metrics import METRICS, Collected
from coin_hf.serve.ray_network import APP, deployment_name
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.target import open_target

REACH, GRACE = 5.0, 10.0
"""Seconds in which a cluster must answer, and in which Ray's processes may end by themselves."""
ROUTER = "router"
"""Name of the ingress deployment."""


class Served:
    """A replica: one network of a coded repository, with dynamic batches."""

    def __init__(self, repo: str, revision: str | None, kind: Kind, number: int, most: int) -> None:
        """Load the network.

        Args:
            repo: Folder or Hub id of the coded repository.
            revision: Its revision on the Hub.
            kind: An expert or a coded model.
            number: Its index.
            most: Most inputs of a batch.
        """
        torch.set_num_threads(1)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        ensemble = CodedEnsemble.from_pretrained(repo, revision, device=device)
        coded = ensemble.coded_models[number if kind == "coded" else 0]
        preprocessing, order = coded.preprocessing, None
        if kind == "expert":
            record = ensemble.coin.experts[number]
            dtype = next(coded.model.parameters()).dtype
            expert = load_recorded(record, coded.label_names, dtype, device=device)
            model, order = expert.model, expert.class_order
        else:
            model = coded.model
        padded = preprocessing.padded if isinstance(preprocessing, TextPreprocessing) else None
        name = deployment_name(kind, number)
        self._network = LocalNetwork(name, model, order=order, most=most, padded=padded)

    async def answer(self, prepared: Any) -> Tensor:
        """Answer one preprocessed input.

        Args:
            prepared: The network's input without batch axis.

        Returns:
            Raw logits, shape (K,).
        """
        return await self._network.ask(Question("", prepared))


class _Ingress:
    """The router's deployment; its application does the work."""

    def __init__(self, *networks: Any) -> None:
        """Depend on the networks' deployments, so that they are up first."""


def build(args: Mapping[str, Any]) -> Application:
    """Build the application, as `serve deploy` and `serve run` do.

    Args:
        args: `target`, the coded repository; `revision`; and `settings`, those of `coin-hf serve`.

    Returns:
        The application: a deployment for each network, and the router as ingress.

    Raises:
        InputError: If the repository or a setting is not usable.
    """
    settings = ServeSettings.model_validate({**(args.get("settings") or {}), "backend": "ray"})
    repo, revision = str(args["target"]), args.get("revision")
    target = open_target(repo, settings, revision)
    block = settings.ray
    kinds: list[tuple[Kind, int]] = [("expert", i) for i in range(len(target.coin.experts))]
    kinds += [("coded", c) for c in range(target.num_coded)]
    options: dict[str, Any] = {"num_cpus": block.cpus, "num_gpus": block.gpus}
    networks = [
        serve.deployment(
            name=deployment_name(kind, number),
            ray_actor_options=options,
            autoscaling_config={"min_replicas": 1, "max_replicas": block.replicas},
            max_ongoing_requests=settings.limits.waiting,
            health_check_period_s=block.health,
            health_check_timeout_s=block.health,
        )(Served).bind(repo, revision, kind, number, settings.batch.most)
        for kind, number in kinds
    ]
    shared = []
    if settings.routers > 1:
        collecting = serve.deployment(name=METRICS, ray_actor_options={"num_cpus": 0})
        shared.append(collecting(Collected).bind())
    router = serve.deployment(
        name=ROUTER,
        num_replicas=settings.routers,
        ray_actor_options={"num_cpus": block.cpus},
        max_ongoing_requests=settings.limits.waiting + 1,
    )(serve.ingress(make_app(target, settings))(_Ingress))
    return router.bind(*networks, *shared)


def config_text(repo: str, settings: ServeSettings, revision: str | None = None) -> str:
    """Write the configuration that `serve deploy` takes, for a cluster of any size.

    Args:
        repo: Folder or Hub id of the coded repository.
        settings: How it is served.
        revision: Its revision on the Hub.

    Returns:
        YAML.
    """
    said = settings.model_dump(mode="json", exclude={"backend", "host", "port", "urls"})
    args = {"target": repo, "settings": said, **({"revision": revision} if revision else {})}
    data = {
        "http_options": {"host": settings.host, "port": settings.port},
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "coin_hf.serve.ray_backend:build",
                "args": args,
            }
        ],
    }
    return yaml.safe_dump(data, sort_keys=False)


def run(repo: str, settings: ServeSettings, revision: str | None = None) -> None:
    """Serve on a Ray of this machine, or the cluster that `ray.address` names, until SIGTERM.

    Args:
        repo: Folder or Hub id of the coded repository.
        settings: How it is served.
        revision: Its revision on the Hub.

    Raises:
        InputError: If there is no such cluster, or the repository is not usable.
    """
    ended = threading.Event()
    own = settings.ray.address is None
    _check_reachable(settings.ray.address)
    try:
        ray.init(
            address=settings.ray.address,
            include_dashboard=False if own else None,
            logging_level="ERROR",
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"there is no Ray at '{settings.ray.address}' ({error}): start it, or leave "
            "`ray.address` out for one of this machine"
        ) from error
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        said = settings.model_dump(mode="json", exclude={"backend"})
        args = {"target": place_of(repo), "revision": revision, "settings": said}
        serve.run(build(args), name=APP, route_prefix="/", blocking=False)
        place = f"http://{settings.host}:{settings.port}"
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own by now
            signal.signal(number, lambda *_: ended.set())
        print(f"serving on {place}: POST {place}/models/EXPERT", file=sys.stderr, flush=True)
        ended.wait()
    finally:
        started = psutil.Process().children(recursive=True)
        serve.shutdown()
        ray.shutdown()
        if own:
            _end(started)


def _check_reachable(address: str | None) -> None:
    """Refuse a cluster that nobody answers for; Ray itself would wait for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except OSError as error:
        raise InputError(
            f"there is no Ray at '{address}' ({error}): start it, or leave `ray.address` out for "
            "one of this machine"
        ) from error


def _end(started: list[psutil.Process]) -> None:
    """End what Ray started here and left: its agents may outlive it."""
    _, alive = psutil.wait_procs(started, timeout=GRACE)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()

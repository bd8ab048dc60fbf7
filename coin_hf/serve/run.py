"""Run a server until it is told to stop."""

import socket
import sys

import uvicorn

from coin_hf.errors import InputError
from coin_hf.serve.http import make_app
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.target import check_places, open_target


def serve(repo: str, settings: ServeSettings, revision: str | None = None) -> None:
    """Serve a coded repository until SIGTERM or SIGINT; requests in work are answered first.

    Args:
        repo: Folder or Hub id.
        settings: How.
        revision: Its revision on the Hub.

    Raises:
        InputError: If it cannot be loaded, or the address is in use.
    """
    if settings.backend == "ray":
        from coin_hf.serve.ray_backend import run

        run(repo, settings, revision)
        return
    target = open_target(repo, settings, revision)
    check_places(target, settings)
    app = make_app(target, settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=int(settings.limits.seconds) + 1,
        server_header=False,
    )
    try:
        listening = config.bind_socket()
    except SystemExit as error:
        raise InputError(
            f"cannot listen on {settings.host}:{settings.port}: choose another `port`"
        ) from error
    place = f"http://{settings.host}:{listening.getsockname()[1]}"
    _Server(config, f"serving on {place}: POST {place}/models/EXPERT").run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that says when it answers."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started:
            print(self._line, file=sys.stderr, flush=True)

"""Run a server until it is told to stop."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from coin_hf.errors import InputError
from coin_hf.recipe.messages import sentences
from coin_hf.recipe.yaml_file import apply_override, read_yaml
from coin_hf.serve.http import make_app
from coin_hf.serve.service import check_places, open_target
from coin_hf.serve.settings import ServeSettings


def read_settings(file: Path | None, overrides: Sequence[str] = ()) -> ServeSettings:
    """Read the settings of serving.

    Args:
        file: A YAML file; None for the defaults.
        overrides: `key.path=value` changes.

    Returns:
        The settings.

    Raises:
        InputError: If the file cannot be read, or a key is unknown or has a bad value.
    """
    data = {} if file is None else read_yaml(file)
    for override in overrides:
        apply_override(data, override)
    try:
        return ServeSettings.model_validate(data)
    except ValidationError as error:
        source = "serve" if file is None else str(file)
        raise InputError(f"{source}: {'; '.join(sentences(error, data, ServeSettings))}") from error


def serve(repo: str, settings: ServeSettings, revision: str | None = None) -> None:
    """Serve a coded repository until SIGTERM or SIGINT; requests in work are answered first.

    Args:
        repo: Folder or Hub id.
        settings: How.
        revision: Its revision on the Hub.

    Raises:
        InputError: If it cannot be loaded, or the address is in use.
    """
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

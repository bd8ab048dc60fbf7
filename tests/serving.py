"""Real servers in processes of their own, and what talks to them."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED = re.compile(r"serving on (http://\S+?):? ")


class Server:
    """A process that serves, its address, and what it says."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := STARTED.search(line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.said))
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.said += list(self.process.stderr)

    def stop(self) -> int:
        """Ask it to end, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(120)
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code


@contextmanager
def serving(*command: str, **environment: str) -> Iterator[Server]:
    """Run `python -m coin_hf serve ...` for a while."""
    server = Server(["-m", "coin_hf", "serve", *command, "-o", "port=0"], **environment)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def plain_servers(
    folders: dict[str, Path], task: str = "image-classification"
) -> Iterator[dict[str, Server]]:
    """Serve each folder by transformers' own pipeline, in a process each."""
    script = str(Path(__file__).with_name("plain_server.py"))
    servers = {name: Server([script, str(folder), task]) for name, folder in folders.items()}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Post a body; return status, JSON and headers."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, headers=said, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return (
                answer.status,
                json.load(answer),
                {k.lower(): v for k, v in answer.headers.items()},
            )
    except urllib.error.HTTPError as error:
        content = error.read()
        headers_of = {k.lower(): v for k, v in error.headers.items()}
        return error.code, json.loads(content) if content else None, headers_of


def ask(url: str, inputs: str, **parameters: Any) -> tuple[int, Any, dict[str, str]]:
    """Post inputs with parameters as JSON."""
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    return post(url, body, content_type="application/json")


def get(url: str) -> tuple[int, str]:
    """Get a page."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

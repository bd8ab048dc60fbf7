"""Pages in processes of their own, and the browser that opens them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from serving import Server

CHROMIUM = os.environ.get("COIN_HF_CHROMIUM") or shutil.which("chromium")
"""The browser that the tests drive, if there is one."""


@contextmanager
def page_of(target: Path, **environment: str) -> Iterator[Server]:
    """Run `coin-hf app` on a folder for a while."""
    server = Server(["-m", "coin_hf", "app", str(target), "--port", "0"], **environment)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def script_of(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run a Space's `app.py` in its folder, as the Hub does; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=folder,
        env={**environment, "GRADIO_SERVER_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the page did not start"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def outside(url: str) -> bool:
    """Whether a request leaves the machine."""
    parts = urlparse(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"

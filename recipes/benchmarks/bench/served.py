"""A `coin-hf serve` in a process of its own: what it started, what it tells, and its end."""

import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
import psutil

STARTED = re.compile(r"serving on (http://\S+?):? ")
PART = re.compile(r"ServeReplica:coin-hf:([\w-]+)|(ServeController|ProxyActor)")
"""How Ray names the processes of a replica, of its controller and of its proxy."""
IMAGES = 32
"""Images that are sent by turns."""
COUNTED = re.compile(r"^(coin_\w+_total)\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    process: psutil.Process

    def parts(self) -> dict[str, list[psutil.Process]]:
        """Return the processes of each deployment, of the controller and of the proxy."""
        found: dict[str, list[psutil.Process]] = {}
        for each in self.process.children(recursive=True):
            try:
                name = PART.search(" ".join(each.cmdline()))
            except psutil.NoSuchProcess:
                continue
            if name:
                found.setdefault(name[1] or name[2], []).append(each)
        return found

    def memory(self) -> dict[str, float]:
        """Return the resident memory of each part in MiB, the server's own process included."""
        found = {}
        for name, processes in {"serve": [self.process], **self.parts()}.items():
            with suppress(psutil.NoSuchProcess):  # one that was killed just now
                found[name] = round(sum(each.memory_info().rss for each in processes) / 2**20, 1)
        return found

    def counted(self) -> dict[str, int]:
        """Return the sums of the counters that its /metrics tell, over all labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        sums: dict[str, int] = {}
        for name, value in COUNTED.findall(text):
            sums[name] = sums.get(name, 0) + round(float(value))
        return sums


@contextmanager
def serving(target: Path, options: Sequence[str]) -> Iterator[Served]:
    """Run `coin-hf serve`, and end it with all that it started.

    Args:
        target: Folder of a coded repository.
        options: Further words of the command line.

    Yields:
        The server, which answers.

    Raises:
        RuntimeError: If it does not start, or leaves a process behind.
    """
    command = [sys.executable, "-m", "coin_hf", "serve", str(target), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said = []
    stream = process.stderr
    assert stream is not None  # it is a pipe
    for line in stream:
        said.append(line)
        if found := STARTED.search(line):
            break
    else:
        raise RuntimeError("".join(said))
    server = Served(found[1], psutil.Process(process.pid))
    try:
        yield server
    finally:
        below = server.process.children(recursive=True)
        process.terminate()
        process.wait(120)
        stream.close()
        _, alive = psutil.wait_procs(below, timeout=30)
        if alive:
            raise RuntimeError(f"{len(alive)} processes were left behind")


def ray_options(words: Sequence[str], **settings: object) -> list[str]:
    """Return the words of the command line for the backend `ray`, on a free port.

    Args:
        words: Settings as `key=value`.
        settings: More of them.

    Returns:
        The words.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    said = {"port": port, "ray.cpus": 0.2, **settings}
    every = [*(f"{key}={value}" for key, value in said.items()), *words]
    return ["--backend", "ray", *(part for word in every for part in ("-o", word))]


def wait_for(server: Served, part: str, old: int, seconds: float = 120.0) -> float:
    """Wait until another process has taken the place of one that was ended.

    Args:
        server: The server.
        part: The deployment.
        old: The id of the process that was ended.
        seconds: The longest to wait.

    Returns:
        The seconds until it was there.

    Raises:
        TimeoutError: If none came.
    """
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if any(each.pid != old for each in server.parts().get(part, [])):
            return time.monotonic() - began
        time.sleep(0.2)
    raise TimeoutError(f"no process has taken the place of {part} in {seconds:g} s")


def demo_images(file: Path | None, target: Path) -> list[bytes]:
    """Read images to send by turns, as PNG files.

    Args:
        file: A parquet file with a column `image`; by default that of the demo beside the target.
        target: Folder of the coded repository.

    Returns:
        The first ones.
    """
    path = file or target.parent / "digits" / "test-00000-of-00001.parquet"
    found = []
    for row in datasets.load_dataset("parquet", data_files=str(path), split=f"train[:{IMAGES}]"):
        stream = io.BytesIO()
        row["image"].save(stream, "PNG")
        found.append(stream.getvalue())
    return found

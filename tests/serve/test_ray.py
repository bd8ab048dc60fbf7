"""Ray Serve: the same answers, and none lost when a replica is killed."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import digits, make_world
from serving import Server, ask, get, post

from coin_hf import CodedEnsemble, Recipe, encode

pytestmark = pytest.mark.slow


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(row["image"]) for row in digits(slice(0, 4))]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    encode(Recipe.from_yaml(make_world(folder))).save_pretrained(folder / "coded")
    return folder / "coded"


@pytest.fixture(scope="module")
def server(coded: Path) -> Iterator[Server]:
    command = ["-m", "coin_hf", "serve", str(coded), "--backend", "ray", "-o", "ray.cpus=0.1"]
    settings = ["-o", f"port={free_port()}", "-o", "deadline.most=1.0", "-o", "breaker.shed=1"]
    settings += ["-o", "routers=2"]
    running = Server([*command, *settings])
    try:
        yield running
    finally:
        started = descendants(running.process.pid)
        running.stop()
        left = wait_for_end(started)
        assert left == [], left


def replicas(server: Server, deployment: str) -> list[int]:
    """The processes of a deployment's replicas."""
    name = re.compile(rf"ServeReplica:coin-hf:{deployment}\b")
    return [pid for pid, line in descendants(server.process.pid).items() if name.search(line)]


def descendants(root: int) -> dict[int, str]:
    """The processes below one, by id, with their command lines."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                parents[int(entry.name)] = int(stat[1])
            except OSError:
                continue
    found, level = {}, {root}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= {child: names[child] for child in level}
    return found


def wait_for_end(processes: dict[int, str]) -> list[str]:
    """The processes that are still there after a while."""
    until = time.monotonic() + 30
    left = list(processes)
    while left and time.monotonic() < until:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists() and not ended(pid)]
        time.sleep(0.2)
    return [processes[pid] for pid in left]


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def scores(answer: list[dict[str, Any]]) -> torch.Tensor:
    found = {each["label"]: each["score"] for each in answer}
    return torch.tensor([found[f"LABEL_{k}"] for k in range(len(found))])


def test_answers_are_the_librarys(coded: Path, server: Server) -> None:
    ensemble = CodedEnsemble.from_pretrained(coded, experts=True)
    x = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 4))])
    raw = {"function_to_apply": "none", "top_k": 10}
    for i, name in enumerate(("low", "high")):
        direct, decoded = ensemble(x)[i], ensemble(x, missing=[name])[i]
        for k, image in enumerate(IMAGES):
            said = base64.b64encode(image).decode()
            status, answer, headers = ask(f"{server.url}/models/{name}", said, **raw)
            assert status == 200
            wanted = direct if headers["x-coin-answer"] == "direct" else decoded
            torch.testing.assert_close(scores(answer), wanted[k], rtol=0, atol=1e-5)
            answer = ask(f"{server.url}/models/{name}", said, decoded="only", **raw)[1]
            torch.testing.assert_close(scores(answer), decoded[k], rtol=0, atol=1e-5)
    assert get(f"{server.url}/health")[0] == 200
    assert json.loads(get(f"{server.url}/info")[1])["backend"] == "ray"
    assert post(f"{server.url}/models/low", b"no image")[0] == 400


def test_no_request_is_lost_when_a_replica_is_killed(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(IMAGES[0])
    for _ in range(30):  # the deadline learns
        post(f"{server.url}/models/high", IMAGES[0])
    victims = replicas(server, "expert-1")
    assert len(victims) == 1, descendants(server.process.pid)
    killer = threading.Timer(5.0, os.kill, (victims[0], signal.SIGKILL))
    killer.start()
    command = [sys.executable, "-m", "coin_hf", "load", server.url, "--rate", "3"]
    command += ["--requests", "45", "--file", str(file), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    killer.join()
    asked = json.loads(ran.stdout)
    assert [each["status"] for each in asked] == [200] * 45
    assert any(each["answer"] == "decoded" for each in asked if each["expert"] == "high")
    took = sorted((each["seconds"], each["answer"], each["expert"]) for each in asked)
    assert took[-1][0] < 15, took[-3:]


def test_any_router_answers_and_tells_of_all(server: Server) -> None:
    def counted() -> float:
        text = get(f"{server.url}/metrics")[1]
        assert len(set(re.findall(r'router="(\w+)"', text))) >= 2
        return sum(float(n) for n in re.findall(r"^coin_requests_total\{.*\} (\S+)$", text, re.M))

    routers = replicas(server, "router")
    assert len(routers) == 2
    time.sleep(2)  # reports come once a second
    before = counted()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: post(f"{server.url}/models/low", IMAGES[k % 4]), range(40)))
    assert [status for status, _, _ in found] == [200] * 40
    time.sleep(2)
    assert counted() == before + 40
    os.kill(routers[0], signal.SIGKILL)
    until, answered = time.monotonic() + 60, 0
    while answered < 20:  # one after the other: few can be lost with the router
        status = post(f"{server.url}/models/low", IMAGES[0])[0]
        answered = answered + 1 if status == 200 else 0
        assert time.monotonic() < until, status
    time.sleep(2)
    assert counted() >= before + 60  # what the router counted that ended is not forgotten


def test_the_configuration_for_a_cluster(coded: Path) -> None:
    command = [sys.executable, "-m", "coin_hf", "serve", str(coded), "--print-ray-config"]
    ran = subprocess.run([*command, "-o", "ray.replicas=3"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = yaml.safe_load(ran.stdout)
    assert said["http_options"] == {"host": "127.0.0.1", "port": 8000}
    [application] = said["applications"]
    assert application["import_path"] == "coin_hf.serve.ray_backend:build"
    assert application["args"]["settings"]["ray"]["replicas"] == 3


def test_a_cluster_that_is_not_there(coded: Path) -> None:
    command = [sys.executable, "-m", "coin_hf", "serve", str(coded), "--backend", "ray"]
    ran = subprocess.run(
        [*command, "-o", f"ray.address=127.0.0.1:{free_port()}"], capture_output=True, text=True,
        env={**os.environ, "RAY_raylet_start_wait_time_s": "5"}, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "there is no Ray at" in ran.stderr

"""Real servers and real clients on loopback."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from builders import digits, make_world
from PIL.Image import new
from serving import Server, ask, get, plain_servers, post, serving
from text_builders import make_text_world

from coin_hf import CodedEnsemble, Recipe, encode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    encode(Recipe.from_yaml(make_world(folder))).save_pretrained(folder / "coded")
    return folder / "coded"


@pytest.fixture(scope="module")
def server(coded: Path) -> Iterator[Server]:
    with serving(str(coded)) as running:
        yield running


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(row["image"]) for row in digits(slice(0, 8))]


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def logits(answer: list[dict[str, Any]]) -> torch.Tensor:
    scores = {each["label"]: each["score"] for each in answer}
    return torch.tensor([scores[f"LABEL_{k}"] for k in range(len(scores))])


def expected(coded: Path, missing: list[str]) -> list[torch.Tensor]:
    ensemble = CodedEnsemble.from_pretrained(coded, experts=True)
    rows = [ensemble.preprocess(row["image"]) for row in digits(slice(0, 8))]
    return ensemble(torch.stack(rows), missing=missing)


def test_answers_are_the_librarys(coded: Path, server: Server) -> None:
    direct = expected(coded, [])
    for i, name in enumerate(("low", "high")):
        found = expected(coded, [name])[i]
        for k, image in enumerate(IMAGES):
            url = f"{server.url}/models/{name}"
            raw = {"function_to_apply": "none", "top_k": 10}
            status, answer, headers = ask(url, text(image), **raw)
            assert status == 200
            assert headers["x-coin-answer"] == "direct"
            assert headers["x-coin-used"] == name
            torch.testing.assert_close(logits(answer), direct[i][k], rtol=0, atol=1e-5)
            status, answer, headers = ask(url, text(image), decoded="only", **raw)
            assert headers["x-coin-answer"] == "decoded"
            assert headers["x-coin-hedged"] == "true"
            assert float(headers["x-coin-nda"]) > 0
            assert float(headers["x-compute-time"]) < 5
            assert all(each["decoded"] is True for each in answer)
            torch.testing.assert_close(logits(answer), found[k], rtol=0, atol=1e-5)


CLIENT = """
import json, sys
from huggingface_hub import InferenceClient
url, path = sys.argv[1:]
client = InferenceClient(model=url)
data = open(path, "rb").read()
found = [client.image_classification(path), client.image_classification(data),
         client.image_classification(path, top_k=2, function_to_apply="none")]
print(json.dumps([[(each.label, each.score) for each in answer] for answer in found]))
"""


def test_an_unmodified_client_works(coded: Path, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(IMAGES[0])
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT, f"{server.url}/models/low", str(file)],
        env={**os.environ, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    by_path, by_bytes, two = json.loads(ran.stdout)
    assert by_path == by_bytes
    assert len(by_path) == 10
    assert sum(score for _, score in by_path) == pytest.approx(1)
    assert [label for label, _ in two] == [label for label, _ in by_path[:2]]
    assert two[0][1] == pytest.approx(expected(coded, [])[0][0].max().item(), abs=1e-4)


def test_all_experts_are_answered(coded: Path, server: Server) -> None:
    status, answer, headers = ask(f"{server.url}/ensemble", text(IMAGES[0]))
    assert status == 200
    assert [each["expert"] for each in answer] == ["low", "high"]
    assert {each["expert"] for each in answer if each["decoded"]} <= {"low", "high"}
    assert headers["x-coin-answer"] in ("direct", "decoded")
    assert post(f"{server.url}/ensemble", IMAGES[1])[0] == 200


def test_every_bad_input_gets_its_code(server: Server) -> None:
    url = f"{server.url}/models/low"
    bomb = io.BytesIO()
    new("1", (9000, 9000)).save(bomb, "PNG")
    cases: list[tuple[int, str, tuple[int, Any, Any]]] = [
        (404, "no expert 'nobody': they are named low, high",
         post(f"{server.url}/models/nobody", IMAGES[0])),
        (400, "the body is empty", post(url, b"")),
        (400, "no image that can be read", post(url, b"not an image")),
        (400, "damaged or cut short", post(url, IMAGES[0][: len(IMAGES[0]) // 2])),
        (413, "9000 x 9000 pixels, above the limit", post(url, bomb.getvalue())),
        (413, "more than 10485760 bytes", post(url, b"0" * (10 * 2**20 + 1))),
        (400, "no JSON", post(url, b"{", content_type="application/json")),
        (422, "one string", post(url, b"[]", content_type="application/json")),
        (400, "which is not fetched", ask(url, "http://127.0.0.1/cat.png")),
        (400, "no base64", ask(url, "***")),
        (422, "`top_k` must be", ask(url, text(IMAGES[0]), top_k=0)),
        (422, "`function_to_apply` must be one", ask(url, text(IMAGES[0]), function_to_apply="x")),
        (422, "`decoded` must be one of", ask(url, text(IMAGES[0]), decoded="x")),
        (422, "`decoded` must be one of", ask(url, text(IMAGES[0]), decoded=False)),
        (422, "`parameters` must be", post(url, b'{"inputs": "eA==", "parameters": []}',
                                           content_type="application/json")),
        (422, "unknown parameter", ask(url, text(IMAGES[0]), **{"\ud800": 1})),
        (404, "no expert", post(f"{server.url}/models/{'9' * 5000}", IMAGES[0])),
        (422, "unknown parameter 'topk': known are top_k", ask(url, text(IMAGES[0]), topk=1)),
        (422, "for one expert", ask(f"{server.url}/ensemble", text(IMAGES[0]), decoded="only")),
    ]  # fmt: skip
    for status, message, (found, answer, _) in cases:
        assert found == status, (message, answer)
        assert message in answer["error"]
        assert post(url, IMAGES[0])[0] == 200  # the next one succeeds
    assert get(url)[0] == 405
    assert get(f"{server.url}/nothing")[0] == 404


def test_what_operators_read(server: Server) -> None:
    assert get(f"{server.url}/health") == (200, '{"status":"ok"}')
    assert get(f"{server.url}/ready") == (200, '{"ready":true}')
    info = json.loads(get(f"{server.url}/info")[1])
    assert [expert["name"] for expert in info["experts"]] == ["low", "high"]
    assert info["experts"][0]["decoded_from"] == ["high"]

    def total() -> float:
        said = get(f"{server.url}/metrics")[1]
        assert "coin_deadline_seconds" in said
        return sum(float(n) for n in re.findall(r"^coin_requests_total\{.*\} (\S+)$", said, re.M))

    before = total()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: post(f"{server.url}/models/low", IMAGES[k % 8]), range(40)))
    assert all(status == 200 for status, _, _ in found)
    assert total() == before + 40


def test_it_ends_in_order(coded: Path) -> None:
    with serving(str(coded)) as running:
        assert post(f"{running.url}/models/low", IMAGES[0])[0] == 200
        began = time.monotonic()
        assert running.stop() in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert time.monotonic() - began < 15
    assert "Traceback" not in "".join(running.said)


def test_too_many_requests_are_refused(coded: Path) -> None:
    with serving(str(coded), "-o", "limits.waiting=1") as running:
        with ThreadPoolExecutor(8) as pool:
            url = f"{running.url}/models/low"
            found = list(pool.map(lambda k: post(url, IMAGES[k % 8]), range(40)))
    codes = {status for status, _, _ in found}
    assert codes == {200, 429}
    refused = [headers for status, _, headers in found if status == 429]
    assert all(headers["retry-after"] == "1" for headers in refused)


def test_a_slow_sender_holds_no_place(coded: Path) -> None:
    with serving(str(coded), "-o", "limits.waiting=1", "-o", "limits.seconds=2") as running:
        place = urlsplit(running.url)
        with socket.create_connection((place.hostname, place.port), timeout=30) as sender:
            sender.sendall(
                b"POST /models/low HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\nabc"
            )
            time.sleep(0.5)
            assert post(f"{running.url}/models/low", IMAGES[0])[0] == 429
            assert b" 408 " in sender.recv(4096)
        assert post(f"{running.url}/models/low", IMAGES[0])[0] == 200


def load(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coin_hf", "load", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_load_is_put_on_a_server(server: Server, tmp_path: Path) -> None:
    file, figure = tmp_path / "digit.png", tmp_path / "load.png"
    file.write_bytes(IMAGES[0])
    options = ["--rate", "50", "--requests", "60", "--file", str(file)]
    ran = load(server.url, *options, "--figure", str(figure))
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^all answers +60 ", ran.stdout, re.M)
    assert figure.read_bytes().startswith(b"\x89PNG")
    ran = load(server.url, *options, "--json", "--expert", "low", "--expert", "nobody")
    asked = json.loads(ran.stdout)
    assert [each["expert"] for each in asked] == ["low", "nobody"] * 30
    assert {each["status"] for each in asked if each["expert"] == "nobody"} == {404}
    times = [each["at"] for each in asked]
    assert times == sorted(times)
    assert 0.5 < times[-1] < 3  # 60 at 50 a second
    for said, sentence in (
        ([server.url], "say what to send"),
        ([server.url, "--file", str(tmp_path / "none.png")], "cannot be read"),
        (["http://127.0.0.1:9", *options], "does not answer as `coin-hf serve` does"),
        ([server.url, *options, "--kill", "999999999"], "cannot be ended"),
    ):
        ran = load(*said)
        assert ran.returncode == 2
        assert sentence in ran.stderr


def test_a_network_is_killed_under_load(coded: Path, tmp_path: Path) -> None:
    folders = {"low": coded.parent / "low", "high": coded.parent / "high", "coded": coded}
    file = tmp_path / "digit.png"
    file.write_bytes(IMAGES[0])
    with plain_servers(folders) as servers:
        urls = [f"urls.{name}={each.url}" for name, each in servers.items()]
        options = [part for said in urls for part in ("-o", said)]
        with serving(str(coded), "--backend", "remote", *options) as running:
            ask(f"{running.url}/models/low", text(IMAGES[0]))
            victim = str(servers["high"].process.pid)
            ran = load(running.url, "--rate", "8", "--requests", "80", "--file", str(file),
                       "--kill", victim, "--json")  # fmt: skip
            assert ran.returncode == 0, ran.stderr
    asked = json.loads(ran.stdout)
    assert [each["status"] for each in asked] == [200] * 80
    late = asked[45:]
    assert {each["answer"] for each in late if each["expert"] == "high"} == {"decoded"}
    assert {each["answer"] for each in late if each["expert"] == "low"} == {"direct"}


def test_a_network_straggles_under_load(coded: Path, tmp_path: Path) -> None:
    folders = {"low": coded.parent / "low", "high": coded.parent / "high", "coded": coded}
    file = tmp_path / "digit.png"
    file.write_bytes(IMAGES[0])
    with plain_servers(folders) as servers:
        urls = [f"urls.{name}={each.url}" for name, each in servers.items()]
        options = [
            part
            for said in (*urls, "hedge.tokens=0", "breaker.misses=1000")
            for part in ("-o", said)
        ]
        victim = servers["high"].process.pid
        with serving(str(coded), "--backend", "remote", *options) as running:
            ask(f"{running.url}/models/low", text(IMAGES[0]))
            ran = load(running.url, "--rate", "10", "--requests", "60", "--file", str(file),
                       "--straggle", str(victim), "--pause", "1", "--expert", "high",
                       "--seed", "3", "--json")  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            asked = json.loads(ran.stdout)
            assert [each["status"] for each in asked] == [200] * 60
            assert max(each["seconds"] for each in asked) > 0.5
            state = Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2].split()[0]
            assert state != "T"  # it goes on
            ran = load(running.url, "--file", str(file), "--straggle", "999999999")
    assert ran.returncode == 2
    assert "process 999999999 cannot be stopped" in ran.stderr


def test_networks_behind_other_servers(coded: Path) -> None:
    folders = {"low": coded.parent / "low", "high": coded.parent / "high", "coded": coded}
    with plain_servers(folders) as servers:
        urls = [f"urls.{name}={each.url}" for name, each in servers.items()]
        options = [part for said in urls for part in ("-o", said)]
        with serving(str(coded), "--backend", "remote", *options) as running:
            url, raw = f"{running.url}/models/high", {"function_to_apply": "none", "top_k": 10}
            direct, decoded = expected(coded, [])[1], expected(coded, ["high"])[1]
            for k, image in enumerate(IMAGES[:3]):
                answer = ask(url, text(image), **raw)[1]
                torch.testing.assert_close(logits(answer), direct[k], rtol=0, atol=1e-5)
                answer = ask(url, text(image), decoded="only", **raw)[1]
                torch.testing.assert_close(logits(answer), decoded[k], rtol=0, atol=1e-5)
            servers["high"].process.kill()
            for k, image in enumerate(IMAGES):
                status, answer, headers = ask(url, text(image), **raw)
                assert (status, headers["x-coin-answer"]) == (200, "decoded")
                assert headers["x-coin-used"] == "low, coded"
                torch.testing.assert_close(logits(answer), decoded[k], rtol=0, atol=1e-5)
            status, answer, _ = ask(url, text(IMAGES[0]), decoded="refuse")
            assert status == 503
            assert "a decoded answer is refused" in answer["error"]
            assert json.loads(get(f"{running.url}/info")[1])["experts"][1]["down"] is True
            assert get(f"{running.url}/ready")[0] == 200  # it is still answered for
            servers["coded"].process.kill()
            assert ask(url, text(IMAGES[0]))[0] in (429, 503)


def test_the_coded_model_answers_alone_where_it_is_allowed(coded: Path, tmp_path: Path) -> None:
    """Both experts are killed: what decoding lacks cannot come, and the coded model is left."""
    folders = {"low": coded.parent / "low", "high": coded.parent / "high", "coded": coded}
    ensemble = CodedEnsemble.from_pretrained(coded)
    rows = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 8))])
    own = ensemble.coded_logits(rows)[0]
    nda = ensemble.result.singles[1].scores["coded model alone"].nda
    file = tmp_path / "digit.png"
    file.write_bytes(IMAGES[0])
    with plain_servers(folders) as servers:
        urls = [f"urls.{name}={each.url}" for name, each in servers.items()]
        options = ["--backend", "remote", *(part for said in urls for part in ("-o", said))]
        with (
            serving(str(coded), *options, "-o", "alone=5") as running,
            serving(str(coded), *options) as strict,
        ):
            url, raw = f"{running.url}/models/high", {"function_to_apply": "none", "top_k": 10}
            assert ask(url, text(IMAGES[0]))[2]["x-coin-answer"] == "direct"
            for name in ("low", "high"):
                servers[name].process.kill()
                servers[name].process.wait()
            status, answer, headers = ask(url, text(IMAGES[0]), **raw)
            assert (status, headers["x-coin-answer"], headers["x-coin-used"]) == (
                200, "alone", "coded",
            )  # fmt: skip
            assert headers["x-coin-missing"] == "low, high"
            assert headers["x-coin-nda"] == f"{nda:.2f}"
            assert all(each["decoded"] is True and each["alone"] is True for each in answer)
            torch.testing.assert_close(logits(answer), own[0], rtol=0, atol=1e-5)
            status, answer, headers = ask(url, text(IMAGES[1]), decoded="only", **raw)
            assert (status, headers["x-coin-answer"]) == (200, "alone")
            status, answer, _ = ask(url, text(IMAGES[1]), decoded="refuse")
            assert status == 503
            assert "refused" in answer["error"]
            status, answer, headers = ask(f"{running.url}/ensemble", text(IMAGES[2]), **raw)
            assert (status, headers["x-coin-answer"]) == (200, "alone")
            assert all(each["decoded"] is True and each["alone"] is True for each in answer)
            torch.testing.assert_close(logits(answer[0]["answer"]), own[2], rtol=0, atol=1e-5)
            assert get(f"{running.url}/ready")[0] == 200
            counted = 'coin_requests_total{answer="alone",expert="high"} 3.0'
            assert counted in get(f"{running.url}/metrics")[1].splitlines()
            ran = subprocess.run(  # a client that knows of none of this
                [sys.executable, "-c", CLIENT, url, str(file)],
                env={**os.environ, "HF_HUB_OFFLINE": "0"},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            best = f"LABEL_{int(own[0].argmax())}"
            assert json.loads(ran.stdout)[0][0][0] == best
            shown = load(running.url, "--rate", "5", "--requests", "4", "--file", str(file))
            assert re.search(r"^alone +[1-4] ", shown.stdout, re.M), shown.stdout
            assert ask(f"{strict.url}/models/high", text(IMAGES[0]))[0] == 503  # by default


TEXT_CLIENT = """
import json, sys
from huggingface_hub import InferenceClient
found = InferenceClient(model=sys.argv[1]).text_classification(sys.argv[2])
print(json.dumps([(each.label, each.score) for each in found]))
"""


def test_texts_are_served(tmp_path: Path) -> None:
    ensemble = encode(Recipe.from_yaml(make_text_world(tmp_path)))
    ensemble.save_pretrained(tmp_path / "coded")
    said = ["the film was bright", "the meal was cold and the room was gloomy and the day was dull"]
    loaded = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    missing = loaded.names[0]
    labels = loaded.label_names[0] or ()
    decoded = loaded(loaded.preprocess(said), missing=[missing])[0]
    with serving(str(tmp_path / "coded")) as running:
        url = f"{running.url}/models/{missing}"
        raw = {"function_to_apply": "none", "decoded": "only"}
        for k, each in enumerate(said):
            status, answer, headers = ask(url, each, **raw)
            assert (status, headers["x-coin-answer"]) == (200, "decoded")
            scores = {element["label"]: element["score"] for element in answer[0]}
            found = torch.tensor([scores[label] for label in labels])
            torch.testing.assert_close(found, decoded[k], rtol=0, atol=1e-5)
        with ThreadPoolExecutor(8) as pool:  # texts of several lengths in one batch
            answers = list(pool.map(lambda k: ask(url, said[k % 2], **raw)[1], range(16)))
        for k, answer in enumerate(answers):
            scores = {element["label"]: element["score"] for element in answer[0]}
            found = torch.tensor([scores[label] for label in labels])
            torch.testing.assert_close(found, decoded[k % 2], rtol=0, atol=1e-5)
        ran = subprocess.run(
            [sys.executable, "-c", TEXT_CLIENT, url, said[0]],
            env={**os.environ, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert sum(score for _, score in json.loads(ran.stdout)) == pytest.approx(1)
        assert post(url, b"some text")[0] == 400
        assert "one string" in ask(url, ["a", "b"])[1]["error"]  # type: ignore[arg-type]


def test_settings_are_checked(coded: Path) -> None:
    def said(*options: str) -> str:
        command = [sys.executable, "-m", "coin_hf", "serve", str(coded), *options]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 2
        return ran.stderr

    assert "unknown key 'portt'" in said("-o", "portt=1")
    assert "for the backend `remote` alone" in said("--backend", "remote")
    assert "must say where low, high, coded answer" in said(
        "--backend", "remote", "-o", "urls.low=http://127.0.0.1:1"
    )
    assert "no device 'mars'" in said("-o", "device=mars")
    assert "above deadline.most" in said("-o", "deadline.least=5")
    assert "DARK, which `token_variable` names, is not set" in said(
        "--backend", "remote", "-o", "urls.low=http://127.0.0.1:1", "-o", "token_variable=DARK"
    )
    assert "alone (30 s) must be below limits.seconds (30 s)" in said("-o", "alone=30")
    ran = subprocess.run(
        [sys.executable, "-m", "coin_hf", "serve", str(coded), "--dry-run"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(ran.stdout)["hedge"] == {"tokens": 10.0, "refill": 0.05}

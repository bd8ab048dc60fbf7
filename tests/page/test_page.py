"""The page in a process of its own, asked by Gradio's client."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import digits
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import page_of
from serving import get, post
from text_builders import make_text_world

from coin_hf import CodedEnsemble, Recipe
from coin_hf.pipeline import encode
from coin_hf.serve.answers import elements

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def client(coded: Path, temporary: Path) -> Iterator[Client]:
    with page_of(coded, TMPDIR=str(temporary)) as server:
        with_files = Client(server.url, verbose=False, analytics_enabled=False)
        yield with_files
        with_files.close()
        assert server.stop() == 0
        errors = [line for line in server.said if re.match(r"[\w.]*(Error|Exception)", line)]
        assert all("InvalidPathError" in line for line in errors), errors  # of the attack below
    assert not [p for p in temporary.iterdir() if p.name.startswith("coin-hf-page")]


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    digits(slice(300, 301))[0]["image"].save(path)
    return path


def told(answer: Any) -> dict[str, float] | None:
    """The classes and scores that a label shows."""
    value = answer.get("value", answer)
    return value and {each["label"]: each["confidence"] for each in value["confidences"]}


def test_the_answers_are_those_of_the_ensemble(client: Client, coded: Path, digit: Path) -> None:
    own, decoded, facts = client.predict("high", [], handle_file(digit), api_name="/answer")
    ensemble = CodedEnsemble.from_pretrained(coded, experts=True)
    x = ensemble.preprocess(digits(slice(300, 301))[0]["image"]).unsqueeze(0)
    for shown, logits in ((own, ensemble(x)[1][0]), (decoded, ensemble(x, missing=[1])[1][0])):
        best = elements(logits, [f"LABEL_{k}" for k in range(10)], top_k=5)
        expected = {each["label"]: each["score"] for each in best}
        assert told(shown) == pytest.approx(expected, abs=1e-6)
    assert "| networks run | 1 | 2 |" in facts
    difference = float((ensemble(x)[1] - ensemble(x, missing=[1])[1]).abs().max())
    assert f"differ by at most {difference:.3g}" in facts
    alone = int(ensemble.coded_logits(x)[0].argmax())
    assert f"A coded model alone says LABEL_{alone}." in facts


def test_an_expert_that_is_off_is_decoded(client: Client, coded: Path, digit: Path) -> None:
    own, decoded, facts = client.predict("high", ["high"], handle_file(digit), api_name="/answer")
    assert not told(own)
    assert told(decoded)
    assert "| networks run | - | 2 |" in facts
    own, decoded, facts = client.predict("low", ["high"], handle_file(digit), api_name="/answer")
    assert told(own)
    assert not told(decoded)
    assert "Asked: low. Switched off: high." in facts
    assert "It could not be decoded: too many others are switched off." in facts


def test_too_many_off_is_one_sentence(client: Client, digit: Path) -> None:
    said = "cannot be answered for: low, high are switched off, and one coded model makes good"
    with pytest.raises(AppError, match=said):
        client.predict("high", ["low", "high"], handle_file(digit), api_name="/answer")


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, and nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no image at all", "no image that can be read"),
        (png_of(20_000, 20_000), "20000 x 20000 pixels, above the limit|exceeds limit"),
        (png_of(9_000, 9_000), "9000 x 9000 pixels, above the limit"),
        (png_of(40, 40), "damaged or cut short"),
    ],
    ids=["noise", "bomb", "large", "cut"],
)
def test_a_broken_image_is_one_sentence(
    content: bytes, said: str, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(AppError, match=said):
        client.predict("high", [], handle_file(path), api_name="/answer")


def test_no_image_is_one_sentence(client: Client) -> None:
    with pytest.raises(AppError, match="give an image first"):
        client.predict("high", [], None, api_name="/answer")


def test_a_file_of_the_server_is_not_read(client: Client, coded: Path) -> None:
    image = {"path": str(coded / "nda.png"), "meta": {"_type": "gradio.FileData"}}
    call = f"{client.src.rstrip('/')}/gradio_api/call/answer"
    status, said, _ = post(
        call, json.dumps({"data": ["high", [], image]}).encode(), content_type="application/json"
    )
    assert status == 200
    _, events = get(f"{call}/{said['event_id']}")
    assert "event: error" in events
    assert "LABEL" not in events


def test_an_expert_that_is_not_there(client: Client, digit: Path) -> None:
    with pytest.raises(AppError, match="there is no such expert: they are named low, high"):
        client.predict("nobody", [], handle_file(digit), api_name="/answer")


def test_choosing_draws_the_erasure(client: Client) -> None:
    caption, drawing = client.predict("low", [], api_name="/erase")
    assert "'low' answers" in caption
    assert "<title>Missing: low</title>" in drawing
    caption, drawing = client.predict("low", ["low", "high"], api_name="/erase")
    assert "Too many are switched off to decode 'low'" in caption
    assert "<title>Missing: low, high</title>" in drawing


def test_the_page_shows_what_was_measured(client: Client, coded: Path) -> None:
    result = CodedEnsemble.from_pretrained(coded).result
    texts = [c["props"].get("value") for c in client.config["components"]]
    assert any(result.table("markdown") in text for text in texts if isinstance(text, str))
    examples = [c["props"] for c in client.config["components"] if c["type"] == "dataset"]
    assert [each["label"] for each in examples] == ["Examples from the experts' test data"]
    assert len(examples[0]["samples"]) == 4


def test_texts(tmp_path: Path) -> None:
    encode(Recipe.from_yaml(make_text_world(tmp_path))).save_pretrained(tmp_path / "coded")
    ensemble = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    text = "the film was bright and the story was dull"
    batch = ensemble.preprocess([text])
    with page_of(tmp_path / "coded") as server:
        client = Client(server.url, verbose=False, analytics_enabled=False)
        own, decoded, facts = client.predict("two", [], text, api_name="/answer")
        for shown, logits in ((own, ensemble(batch)[1]), (decoded, ensemble(batch, ["two"])[1])):
            expected = dict(zip(("bad", "good"), logits[0].double().softmax(0), strict=True))
            assert told(shown) == pytest.approx({k: float(p) for k, p in expected.items()}, 1e-5)
        assert "| networks run | 1 | 2 |" in facts
        with pytest.raises(AppError, match="give a text first"):
            client.predict("two", [], "  \n", api_name="/answer")
        with pytest.raises(AppError, match="has 20001 letters, above the limit of 20000"):
            client.predict("two", [], "x" * 20_001, api_name="/answer")
        client.close()
        os.kill(server.process.pid, signal.SIGINT)  # as Ctrl-C
        assert server.process.wait(60) == 0


def test_a_port_in_use_is_one_sentence(coded: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "coin_hf", "app", str(coded), "--port", port],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == (
        f"error: cannot listen on 127.0.0.1, port {port}: choose another port, or 0 for a free one"
    )

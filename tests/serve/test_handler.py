"""handler.py of a coded repository: one network an endpoint, without coin-hf."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    digits,
    make_world,
    save_adapter,
    save_digits,
    save_sliced,
    save_transformers,
    write_recipe,
)
from serving import Server, ask, post, serving
from text_builders import make_text_world

from coin_hf import CodedEnsemble, Recipe, encode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the experts have labels of their own"),
    pytest.mark.filterwarnings("ignore:dataset .* numbers its classes in another order"),
]
SERVER = Path(__file__).parents[1] / "handler_server.py"
TEXTS = ["the film was bright", "the meal was cold and the room was gloomy"]


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(row["image"]) for row in digits(slice(0, 3))]
SAID = [base64.b64encode(image).decode() for image in IMAGES]


def own_labels(folder: Path) -> Path:
    """Labels of their own, in orders of their own, and two coded models."""
    save_digits(folder / "digits")
    for seed, (name, labels) in enumerate({"low": [3, 0, 1], "high": [1, 9, 8]}.items()):
        save_sliced(folder / name, labels, seed)
    data = {"path": str(folder / "digits")}
    low, high = ({**data, "labels": labels} for labels in ([0, 1, 3], [1, 8, 9]))
    return write_recipe(folder, datasets={"low": low, "high": high}, coded=2)


def image_classifiers(folder: Path) -> Path:
    save_digits(folder / "digits")
    for seed, name in enumerate(("low", "high")):
        save_transformers(folder / name, seed)
    return write_recipe(folder)


def adapters(folder: Path) -> Path:
    save_digits(folder / "digits")
    save_transformers(folder / "base")
    for seed, name in enumerate(("low", "high")):
        save_adapter(folder / "base", folder / name, seed)
    return write_recipe(folder)


WORLDS: dict[str, Callable[[Path], Path]] = {
    "timm": make_world,
    "own labels": own_labels,
    "transformers": image_classifiers,
    "adapters": adapters,
    "texts": make_text_world,
}

ASK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from handler_server import load
folder, names, inputs = sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
found = {}
for name in names:
    os.environ["COIN_NETWORK"] = name
    found[name] = load(folder)({"inputs": inputs, "parameters": {"function_to_apply": "none"}})
print(json.dumps(found))
"""


def answers(folder: Path, names: Sequence[str], inputs: Sequence[str]) -> dict[str, Any]:
    """What the handler says in a fresh process that cannot import coin_hf."""
    command = [sys.executable, "-c", ASK, str(SERVER.parent), str(folder)]
    command += [json.dumps(names), json.dumps(inputs)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def scores(answer: list[dict[str, Any]], labels: Sequence[str]) -> torch.Tensor:
    by = {each["label"]: each["score"] for each in answer}
    assert len(by) == len(labels) == len(answer)
    assert [each["score"] for each in answer] == sorted(by.values(), reverse=True)
    return torch.tensor([by[label] for label in labels])


@pytest.mark.parametrize("kind", WORLDS)
def test_it_answers_for_every_network_as_the_library_does(kind: str, tmp_path: Path) -> None:
    coded = tmp_path / "coded"
    encode(Recipe.from_yaml(WORLDS[kind](tmp_path))).save_pretrained(coded, handler=True)
    ensemble = CodedEnsemble.from_pretrained(coded, experts=True)
    texts = ensemble.coin.task is not None
    inputs: Any = TEXTS if texts else SAID
    x = ensemble.preprocess(TEXTS if texts else [row["image"] for row in digits(slice(0, 3))])
    networks = ["coded", "coded-1"][: ensemble.code.num_coded]
    found = answers(coded, [*ensemble.names, *networks], inputs)
    count = ensemble.coded.num_classes
    rows = ensemble.coded.label_names or [f"LABEL_{k}" for k in range(count)]
    wanted = {
        name: (logits, labels or [f"LABEL_{k}" for k in range(logits.shape[1])])
        for name, logits, labels in zip(
            ensemble.names, ensemble(x), ensemble.label_names, strict=True
        )
    } | {networks[c]: (logits, rows) for c, logits in ensemble.coded_logits(x).items()}
    for name, (logits, labels) in wanted.items():
        for k in range(len(inputs)):
            got = scores(found[name][k], labels)
            torch.testing.assert_close(got, logits[k], rtol=0, atol=1e-5)
    library = "timm" if ensemble.coin.library == "timm" else "transformers"
    needed = (coded / "requirements.txt").read_text().splitlines()
    assert any(line.startswith(f"{library}>=") for line in needed)
    assert any(line.startswith("peft") for line in needed) == (kind == "adapters")


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endpoints")
    encode(Recipe.from_yaml(make_world(folder))).save_pretrained(folder / "coded", handler=True)
    return folder / "coded"


def test_endpoints_are_decoded_from(coded: Path) -> None:
    ensemble = CodedEnsemble.from_pretrained(coded, experts=True)
    x = [ensemble.preprocess(row["image"])[None] for row in digits(slice(0, 3))]
    names = ("low", "high", "coded")
    with ExitStack() as stack:
        servers = {
            name: Server([str(SERVER), str(coded)], COIN_NETWORK=name, ENDPOINT_TOKEN="hf_secret")
            for name in names
        }
        for server in servers.values():
            stack.callback(server.stop)
        places = [part for name in names for part in ("-o", f"urls.{name}={servers[name].url}")]
        options = [str(coded), "--backend", "remote", *places]
        open_one = stack.enter_context(serving(*options))
        assert ask(f"{open_one.url}/models/high", SAID[0])[0] == 503  # the endpoints are protected
        options += ["-o", "token_variable=SECRET"]
        running = stack.enter_context(serving(*options, SECRET="hf_secret"))
        url, raw = f"{running.url}/models/high", {"function_to_apply": "none"}
        labels = [f"LABEL_{k}" for k in range(10)]
        for k, said in enumerate(SAID):
            for missing, decoded in (([], "refuse"), (["high"], "only")):
                _, answer, headers = ask(url, said, decoded=decoded, **raw)
                assert headers["x-coin-answer"] == ("decoded" if missing else "direct")
                wanted = ensemble(x[k], missing=missing)[1][0]
                got = scores(answer, labels)
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        servers["high"].process.kill()
        servers["high"].process.wait()
        _, answer, headers = ask(url, SAID[0], **raw)
        assert headers["x-coin-used"] == "low, coded"
        wanted = ensemble(x[0], missing=["high"])[1][0]
        torch.testing.assert_close(scores(answer, labels), wanted, rtol=0, atol=1e-5)


def test_requests_of_every_form(coded: Path) -> None:
    server = Server([str(SERVER), str(coded)], COIN_NETWORK="low")
    try:
        _, from_json, _ = ask(server.url, SAID[0])
        _, from_bytes, _ = post(server.url, IMAGES[0], content_type="image/png")
        assert from_json == from_bytes
        assert sum(each["score"] for each in from_json) == pytest.approx(1)
        assert ask(server.url, SAID[0], top_k=2)[1] == from_json[:2]
        sigmoid = ask(server.url, SAID[0], function_to_apply="sigmoid")[1]
        assert [each["label"] for each in sigmoid] == [each["label"] for each in from_json]
        for said, parameters, sentence in (
            ("***", {}, "no image"),
            (SAID[0], {"top_k": 0}, "whole number"),
            (SAID[0], {"topk": 1}, "unknown parameter 'topk'"),
            (SAID[0], {"function_to_apply": "x"}, "one of softmax"),
        ):
            status, answer, _ = ask(server.url, said, **parameters)
            assert status == 400
            assert sentence in answer["error"]
    finally:
        server.stop()


def test_a_network_that_is_not_there(coded: Path) -> None:
    command = [sys.executable, str(SERVER), str(coded)]
    environment = {**os.environ, "COIN_NETWORK": "nobody"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "the networks are named low, high, coded" in ran.stderr


def test_it_is_written_on_request(coded: Path, tmp_path: Path) -> None:
    assert (coded / "handler.py").is_file()
    CodedEnsemble.from_pretrained(coded).save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "handler.py").exists()

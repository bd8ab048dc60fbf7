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
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import digits, fit_classifier, recipe_dict, save_digits, save_timm, timm_model

from coin_hf import InputError, Recipe, encode, load_expert
from coin_hf.data.images import LabelledImages, Owner
from coin_hf.data.labels import invented, match_classes
from coin_hf.experts.alignment import check_alignment
from coin_hf.recipe.blocks import DatasetBlock


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


def test_experts_with_the_same_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    save_timm(tmp_path / "a", timm_model(0), label_names=NAMES)
    save_timm(tmp_path / "b", timm_model(1), label_names=NAMES[::-1])
    with pytest.raises(InputError, match="have the same classes in another order"):
        check_alignment([load_expert(str(tmp_path / name)) for name in ("a", "b")])


def test_an_expert_at_chance_is_warned_of(world: Path, tmp_path: Path) -> None:
    save_timm(tmp_path / "noise", timm_model(5))
    recipe = recipe_dict(world)
    recipe["experts"][1]["model"] = str(tmp_path / "noise")
    recipe["datasets"]["high"]["labels"] = [0]  # not what it answers
    with pytest.warns(UserWarning, match=r"'noise' is right on 0% .* at or below chance for 1 cl"):
        result = encode(Recipe.from_dict(recipe)).result
    assert result.erasures[1].expert_accuracy == 0
    assert json.dumps(result.dump())

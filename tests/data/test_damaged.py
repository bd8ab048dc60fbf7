"""`skip_damaged` leaves out the rows that cannot be decoded, counts them, and nothing else."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from builders import digits, make_world, recipe_dict

from coin_hf import CodedEnsemble, InputError, Recipe, encode, evaluate
from coin_hf.data.images import LabelledImages
from coin_hf.recipe.blocks import DatasetBlock

DAMAGED = {"train": [3, 40, 41, 150], "test": [0, 7, 8, 99]}


def damage(folder: Path) -> Path:
    """The digits as parquet, some images cut, emptied or missing."""
    folder.mkdir()
    parts = {"train": digits(slice(0, 200)), "test": digits(slice(200, 300))}
    for split, data in parts.items():
        encoded = data.cast_column("image", datasets.Image(decode=False))["image"][:]
        for i, row in enumerate(DAMAGED[split]):
            whole = encoded[row]["bytes"]
            encoded[row] = [
                {"bytes": whole[:60], "path": None},
                {"bytes": b"", "path": None},
                None,
            ][i % 3]
        data = datasets.Dataset.from_dict(
            {"image": encoded, "label": data["label"][:]}, features=data.features
        )
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def opened(folder: Path, split: str = "train", **block: object) -> LabelledImages:
    return LabelledImages("d", DatasetBlock(path=str(folder), **block), split, 10)


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_rows_are_left_out(tmp_path: Path, streaming: bool) -> None:
    images = opened(damage(tmp_path / "d"), skip_damaged=True, streaming=streaming)
    batches = list(images.batches(32, limit=None, seed=[0], shard=(0, 1)))
    found = [row.position for _, rows in batches for row in rows]
    assert found == [i for i in range(200) if i not in DAMAGED["train"]]
    assert images.damaged == set(DAMAGED["train"])
    parts = [list(images.batches(32, limit=None, seed=[0], shard=(r, 2))) for r in range(2)]
    every = sorted([each for part in parts for each in part], key=lambda each: each[0])
    assert [[r.position for r in rows] for _, rows in every] == [
        [r.position for r in rows] for _, rows in batches
    ]
    assert len(images.draw(196, seed=[0])) == 196
    with pytest.raises(InputError, match="has only 196 images in its split"):
        images.draw(197, seed=[0])


def test_a_draw_without_damage_is_the_same_and_damaged_rows_are_replaced(tmp_path: Path) -> None:
    folder = damage(tmp_path / "d")
    plain, skipping = opened(folder), opened(folder, skip_damaged=True)
    lost = 0
    for seed in range(12):
        before = [row.position for row in plain.draw(25, seed=[seed])]
        after = [row.position for row in skipping.draw(25, seed=[seed])]
        sound = [i for i in before if i not in DAMAGED["train"]]
        assert after[: len(sound)] == sound
        assert len(set(after)) == 25
        assert not set(after) & set(DAMAGED["train"])
        lost += len(before) - len(sound)
    assert lost > 0


@pytest.mark.slow
def test_counts_are_recorded(tmp_path: Path) -> None:
    make_world(tmp_path)
    recipe = recipe_dict(tmp_path, samples={"per_expert": 60})
    for block in recipe["datasets"].values():
        block["path"] = (
            str(damage(tmp_path / "bad"))
            if not (tmp_path / "bad").exists()
            else str(tmp_path / "bad")
        )
    with pytest.raises(InputError, match=r"row \d+ of the split .* `skip_damaged: true`"):
        encode(Recipe.from_dict(recipe))
    for block in recipe["datasets"].values():
        block["skip_damaged"] = True
    with pytest.warns(UserWarning, match="damaged or missing images of .* are left out"):
        ensemble = encode(Recipe.from_dict(recipe))
    labels = np.array(digits(slice(200, 300))["label"])
    sound = np.setdiff1d(np.arange(100), DAMAGED["test"])
    expected = {"low": int(np.sum(labels[sound] < 5)), "high": int(np.sum(labels[sound] >= 5))}
    assert {e.missing: e.points for e in ensemble.result.erasures} == expected
    damaged = ensemble.result.damaged or {}
    tests = {k: n for k, n in damaged.items() if k.endswith(":test")}
    of = {"low:test": labels[DAMAGED["test"]] < 5, "high:test": labels[DAMAGED["test"]] >= 5}
    assert tests == {k: int(np.sum(mask)) for k, mask in of.items()}
    assert {k for k in damaged if k.endswith(":train")} <= {"low:train", "high:train"}
    assert len(damaged) > len(tests)
    ensemble.save_pretrained(tmp_path / "coded")
    with pytest.warns(UserWarning, match="are left out"):
        again = evaluate(tmp_path / "coded")
    assert again.damaged == damaged
    assert CodedEnsemble.from_pretrained(tmp_path / "coded").result.damaged == damaged
    assert "left out" in (tmp_path / "coded/README.md").read_text()


@pytest.mark.slow
def test_a_test_set_of_nothing_but_damage_is_one_sentence(tmp_path: Path) -> None:
    make_world(tmp_path)
    recipe = recipe_dict(tmp_path)
    (tmp_path / "bad").mkdir()
    for split, damaged in (("train", False), ("test", True)):
        data = digits(slice(0, 40))
        if damaged:
            junk = io.BytesIO(b"junk").getvalue()
            columns = {"image": [{"bytes": junk, "path": None}] * 40, "label": data["label"][:]}
            data = datasets.Dataset.from_dict(columns, features=data.features)
        data.to_parquet(tmp_path / f"bad/{split}-00000-of-00001.parquet")
    recipe["datasets"]["low"] |= {"path": str(tmp_path / "bad"), "skip_damaged": True}
    with pytest.raises(InputError, match="no image in the split 'test' of dataset 'low' can be"):
        encode(Recipe.from_dict(recipe))

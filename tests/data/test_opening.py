"""Each dataset of a run is opened once, whatever its blocks filter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from builders import digits, recipe_dict, save_digits

from coin_hf import Recipe, encode
from coin_hf.data.images import LabelledImages
from coin_hf.data.opening import Datasets
from coin_hf.errors import InputError
from coin_hf.recipe.blocks import DatasetBlock


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which folders datasets is asked to open; it opens them."""
    seen: list[str] = []

    def spied(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(path)
            return real(path, *args, **kwargs)

        return call

    for name in ("load_dataset_builder", "load_from_disk", "load_dataset"):
        monkeypatch.setattr(datasets, name, spied(getattr(datasets, name)))
    return seen


def test_encoding_opens_a_folder_once(world: Path, opened: list[str]) -> None:
    encode(Recipe.from_dict(recipe_dict(world)))
    assert opened == [str(world / "digits")]


@pytest.mark.parametrize("saved", [False, True])
def test_blocks_of_one_dataset_share_it(tmp_path: Path, saved: bool, opened: list[str]) -> None:
    if saved:
        splits = {"train": digits(slice(0, 20)), "test": digits(slice(20, 30))}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    else:
        save_digits(tmp_path / "d", 20, 10)
    sources = Datasets()
    low = DatasetBlock(path=str(tmp_path / "d"), labels=(0, 1))
    high = DatasetBlock(path=str(tmp_path / "d"), labels=(8, 9))
    assert (
        len(sources.split("low", low, "train")) == len(sources.split("high", high, "train")) == 20
    )
    assert len(sources.split("low", low, "test")) == 10
    streamed = sources.split("low", low.model_copy(update={"streaming": True}), "test")
    assert len(list(streamed)) == 10
    assert len(opened) == 2  # streamed and not
    with pytest.raises(InputError, match=r"dataset 'low' .*split 'dev'.* cannot be opened: .*dev"):
        sources.split("low", low, "dev")


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        ("train", "test", 0),
        ("train[:50%]", "train[50%:]", 0),
        ("train", "train[:5]", 5),
        ("train[:60%]", "train[-10:]+test", 2),
        ("test", "all", 10),
    ],
)
def test_rows_of_two_splits_are_compared(
    tmp_path: Path, saved: bool, train: str, test: str, shared: int
) -> None:
    if saved:
        splits = {"train": digits(slice(0, 20)), "test": digits(slice(20, 30))}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    else:
        save_digits(tmp_path / "d", 20, 10)
    block, sources = DatasetBlock(path=str(tmp_path / "d")), Datasets()
    one, other = (LabelledImages("d", block, split, 10, sources) for split in (train, test))
    assert one.shared_rows(other) == other.shared_rows(one) == shared
    both = digits(slice(0, 30))["label"]
    for images in (one, other):  # the numbers are those of the rows
        truths = [images.row(int(position)).truth for position in images.positions()]
        assert truths == [both[number] for number in images.numbers.tolist()]
    kept = block.model_copy(update={"labels": (0, 1, 2, 3, 4)})
    rest = block.model_copy(update={"labels": (5, 6, 7, 8, 9)})
    low, high = (LabelledImages("d", each, "all", 10, sources) for each in (kept, rest))
    assert low.shared_rows(high) == 0


def test_samples_that_are_test_data_are_refused(world: Path) -> None:
    recipe = recipe_dict(world, evaluation={"split": "train[:10]"})
    with pytest.raises(InputError, match=r"rows of dataset 'low' are both test data \(s"):
        encode(Recipe.from_dict(recipe))


@pytest.mark.parametrize("readme", [False, True])
def test_a_folder_that_changed_is_read_anew(tmp_path: Path, readme: bool) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    if readme:  # `datasets` would take the cached rows of the old file
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
            "    path: train-*\n---\n"
        )
    for rows in (range(12), range(11, -1, -1)):
        data = digits(slice(0, 12)).select(rows)
        data.to_parquet(folder / "train-00000-of-00001.parquet")
        opened = Datasets().split("d", DatasetBlock(path=str(folder)), "train")
        assert opened["label"][:] == data["label"][:]

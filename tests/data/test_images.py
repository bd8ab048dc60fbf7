import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from builders import digits, save_digits
from PIL.Image import fromarray

from coin_hf.data.images import ImageRow, LabelledImages
from coin_hf.data.rows import SHUFFLE_BUFFER
from coin_hf.errors import InputError
from coin_hf.recipe.blocks import DatasetBlock

STREAMING = pytest.mark.parametrize("streaming", [False, True])
NAMES = list("0123456789")


def open_split(path: Path, split: str = "train", k: int = 10, **block: Any) -> LabelledImages:
    return LabelledImages("mine", DatasetBlock(path=str(path), **block), split, k)


def everything(images: LabelledImages, batch_size: int = 64) -> list[ImageRow]:
    batches = images.batches(batch_size, limit=None, seed=(0,), shard=(0, 1))
    return [row for _, rows in batches for row in rows]


def message(act: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    return text


def save_parquet(folder: Path, split: str = "train", **columns: tuple[Any, list[Any]]) -> Path:
    """Write columns, each (feature, values), as a folder of one parquet file."""
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    data = {name: values for name, (_, values) in columns.items()}
    folder.mkdir()
    data = datasets.Dataset.from_dict(data, features=features)
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def gray(count: int) -> list[Any]:
    return [fromarray(np.full((8, 8), 10 * i, np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cats and three dogs in train and test, each image of its own grey."""
    folder = tmp_path_factory.mktemp("data") / "pets"
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (folder / split / kind).mkdir(parents=True)
            for i, image in enumerate(gray(3)):
                image.save(folder / split / kind / f"{i}.png")
    return folder


class TestReading:
    @STREAMING
    def test_a_folder_of_parquet_files(self, parquet: Path, streaming: bool) -> None:
        rows = everything(open_split(parquet, "test", streaming=streaming))
        expected = digits(slice(200, 300))
        assert [row.position for row in rows] == list(range(100))
        assert [row.label for row in rows] == expected["label"][:]
        for row in rows[::25]:
            own = np.array(expected[row.position]["image"])
            assert np.array_equal(np.array(row.image), own)

    @STREAMING
    def test_a_folder_written_by_save_to_disk(self, tmp_path: Path, streaming: bool) -> None:
        splits = {"train": digits(slice(0, 10)), "test": digits(slice(10, 30))}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
        rows = everything(open_split(tmp_path / "saved", "test", streaming=streaming))
        assert [row.label for row in rows] == splits["test"]["label"][:]
        assert message(lambda: open_split(tmp_path / "saved", "val")) == (
            f"dataset 'mine' ({tmp_path / 'saved'}, split 'val') cannot be opened: "
            "Unknown split \"val\". Should be one of ['train', 'test']."
        )

    def test_one_saved_split_does_not_stand_for_another(self, tmp_path: Path) -> None:
        digits(slice(0, 10)).save_to_disk(tmp_path / "saved")
        assert len(everything(open_split(tmp_path / "saved", "train"))) == 10
        text = message(lambda: open_split(tmp_path / "saved", "test"))
        assert "Unknown split \"test\". Should be one of ['train']" in text

    @STREAMING
    def test_a_folder_of_images(self, image_folder: Path, streaming: bool) -> None:
        rows = everything(open_split(image_folder, "test", k=2, streaming=streaming))
        assert sorted(row.label for row in rows if row.label is not None) == [0, 0, 0, 1, 1, 1]
        assert sorted(np.array(row.image).max() for row in rows) == [0, 0, 10, 10, 20, 20]

    def test_a_slice_of_a_split(self, parquet: Path) -> None:
        assert len(everything(open_split(parquet, "train[5:15]"))) == 10

    def test_nothing_but_the_needed_columns_is_read(self, tmp_path: Path) -> None:
        folder = save_parquet(
            tmp_path / "wide",
            text=(datasets.Value("string"), ["a"] * 3),
            picture=(datasets.Image(), gray(3)),
            kind=(datasets.ClassLabel(names=["x", "y"]), [1, 0, 1]),
        )
        images = open_split(folder, k=2)
        assert (images.image_column, images.label_column) == ("picture", "kind")
        assert images.data.column_names == ["picture", "kind"]


class TestLabels:
    @STREAMING
    @pytest.mark.parametrize("labels", [[1, 2], ["1", "2"], [2, "1"]])
    def test_filter_by_number_and_name(
        self, parquet: Path, streaming: bool, labels: list[int | str]
    ) -> None:
        rows = everything(open_split(parquet, labels=labels, streaming=streaming))
        truth = digits(slice(0, 200))["label"][:]
        assert [row.position for row in rows] == [i for i, y in enumerate(truth) if y in (1, 2)]
        assert {row.label for row in rows} == {1, 2}

    def test_filter_by_class_name(self, image_folder: Path) -> None:
        rows = everything(open_split(image_folder, k=2, labels=["dog"]))
        assert [row.label for row in rows] == [1, 1, 1]

    def test_an_unknown_class(self, image_folder: Path, tmp_path: Path) -> None:
        assert message(lambda: open_split(image_folder, k=2, labels=["dgo"])) == (
            "dataset 'mine' has no class 'dgo': its classes are 'cat', 'dog'"
        )
        names = [f"class {i}" for i in range(1000)]
        folder = save_parquet(
            tmp_path / "many",
            image=(datasets.Image(), gray(1)),
            label=(datasets.ClassLabel(names=names), [0]),
        )
        text = message(lambda: open_split(folder, labels=["x"]))
        assert text.endswith("'class 9' and 990 more")

    @STREAMING
    def test_more_classes_than_the_experts_know(self, parquet: Path, streaming: bool) -> None:
        images = open_split(parquet, k=5, streaming=streaming)
        expected = (
            "dataset 'mine' has the label 5 in row 5 of 'train', but the experts know 5 classes "
            "(0 to 4): give the dataset they were fine-tuned on, or filter its labels"
        )
        assert message(lambda: images.draw(3, seed=(0, 0))) == expected
        assert message(lambda: everything(images)) == expected

    @STREAMING
    def test_classes_beyond_the_experts_may_be_filtered_away(
        self, parquet: Path, streaming: bool
    ) -> None:
        images = open_split(parquet, k=5, labels=[0, 1, 2, 3, 4], streaming=streaming)
        rows = images.draw(20, seed=(0, 0))
        assert all(row.label is not None and row.label < 5 for row in rows)

    @STREAMING
    @pytest.mark.parametrize("unknown", [None, -1])
    def test_rows_without_a_label(
        self, tmp_path: Path, streaming: bool, unknown: int | None
    ) -> None:
        folder = save_parquet(
            tmp_path / "some",
            image=(datasets.Image(), gray(4)),
            label=(datasets.ClassLabel(names=NAMES), [7, unknown, 0, unknown]),
        )
        images = open_split(folder, streaming=streaming)
        rows = sorted(images.draw(4, seed=(0, 0)), key=lambda row: row.position)
        assert [row.label for row in rows] == [7, None, 0, None]
        assert rows[0].truth == 7
        assert message(lambda: rows[1].truth) == (
            "row 1 of the split 'train' of dataset 'mine' has no label to measure NDA with: choose "
            "a split with labels, or a label filter that leaves such rows out"
        )
        filtered = open_split(folder, labels=[0, 7], streaming=streaming)
        assert [row.position for row in everything(filtered)] == [0, 2]

    @STREAMING
    def test_no_label_column(self, tmp_path: Path, streaming: bool) -> None:
        folder = save_parquet(tmp_path / "bare", image=(datasets.Image(), gray(3)))
        images = open_split(folder, streaming=streaming)
        assert [row.label for row in everything(images)] == [None] * 3
        assert message(images.check_usable_for_tests) == (
            "dataset 'mine' has no label column to measure NDA with, only image (PIL.Image.Image): "
            "name one as datasets.mine.label"
        )
        assert message(lambda: open_split(folder, labels=[1])).startswith(
            "dataset 'mine' has a label filter but no label column: its columns are image"
        )

    @STREAMING
    def test_a_filter_that_nothing_passes(self, parquet: Path, streaming: bool) -> None:
        open_split(parquet, labels=[9], streaming=streaming).check_usable_for_tests()
        images = open_split(parquet, labels=[11], k=20, streaming=streaming)
        assert message(images.check_usable_for_tests) == (
            "dataset 'mine' has no image in its split 'train' that passes its label filter: "
            "choose another split or filter"
        )


class TestColumns:
    @pytest.fixture
    def two(self, tmp_path: Path) -> Path:
        return save_parquet(
            tmp_path / "two",
            image=(datasets.Image(), gray(3)),
            mask=(datasets.Image(), gray(6)[3:]),
            fine=(datasets.ClassLabel(names=NAMES), [1, 2, 3]),
            coarse=(datasets.ClassLabel(names=NAMES), [4, 5, 6]),
            number=(datasets.Value("int32"), [7, 8, 9]),
        )

    def test_several_must_be_named(self, two: Path) -> None:
        assert message(lambda: open_split(two)) == (
            "dataset 'mine' has several image columns (image, mask): name one as "
            "datasets.mine.image"
        )
        assert message(lambda: open_split(two, image="image")) == (
            "dataset 'mine' has several label columns (fine, coarse): name one as "
            "datasets.mine.label"
        )

    @STREAMING
    @pytest.mark.parametrize(("label", "first"), [("fine", 1), ("coarse", 4), ("number", 7)])
    def test_named_ones(self, two: Path, label: str, first: int, streaming: bool) -> None:
        row = everything(open_split(two, image="mask", label=label, streaming=streaming))[0]
        assert row.label == first
        assert np.array(row.image).max() == 30

    def test_wrong_names(self, two: Path) -> None:
        for column in ("number", "nothing"):
            assert message(lambda column=column: open_split(two, image=column)).startswith(  # type: ignore[misc]
                f"dataset 'mine' has no image column '{column}': its columns are image (PIL.Image"
            )
        assert message(lambda: open_split(two, image="image", label="mask")).startswith(
            "dataset 'mine' has no label column 'mask': its columns are image (PIL.Image.Image), "
        )

    @STREAMING
    def test_no_image_column(self, tmp_path: Path, streaming: bool) -> None:
        folder = save_parquet(tmp_path / "text", text=(datasets.Value("string"), ["a", "b"]))
        assert message(lambda: open_split(folder, streaming=streaming)) == (
            "dataset 'mine' has no image column, only text (string): give a dataset with a column "
            "of type Image"
        )


class TestDraw:
    @STREAMING
    def test_it_is_seeded_and_without_replacement(self, parquet: Path, streaming: bool) -> None:
        images = open_split(parquet, streaming=streaming)
        first = [row.position for row in images.draw(60, seed=(0, 0))]
        assert first == [row.position for row in images.draw(60, seed=(0, 0))]
        assert len(set(first)) == 60
        assert first != sorted(first)
        for other in ((0, 1), (1, 0)):
            assert first != [row.position for row in images.draw(60, seed=other)]

    @STREAMING
    def test_all_of_them(self, parquet: Path, streaming: bool) -> None:
        rows = open_split(parquet, streaming=streaming).draw(200, seed=(3, 0))
        assert sorted(row.position for row in rows) == list(range(200))

    @STREAMING
    def test_every_row_can_be_drawn(self, parquet: Path, streaming: bool) -> None:
        images = open_split(parquet, "test[:12]" if not streaming else "test", streaming=streaming)
        count = 12 if not streaming else 100
        drawn = {row.position for s in range(60) for row in images.draw(count // 4, seed=(s, 0))}
        assert drawn == set(range(count))

    def test_a_stream_longer_than_its_buffer(self, tmp_path: Path) -> None:
        images = open_split(save_digits(tmp_path / "long", train=1500), streaming=True)
        assert SHUFFLE_BUFFER < 1500
        rows = [row.position for row in images.draw(1500, seed=(0, 0))]
        assert sorted(rows) == list(range(1500))
        first = rows[:400]  # 400 rows have come after the buffer was full
        assert max(first) >= SHUFFLE_BUFFER
        assert all(position < SHUFFLE_BUFFER + n for n, position in enumerate(first))

    @STREAMING
    def test_too_few(self, parquet: Path, streaming: bool) -> None:
        assert message(lambda: open_split(parquet, streaming=streaming).draw(201, seed=(0,))) == (
            "dataset 'mine' has only 200 images in its split 'train', but 201 were asked for: ask "
            "for fewer, or choose another split or label filter"
        )
        images = open_split(parquet, labels=[1, 0], streaming=streaming)
        text = message(lambda: images.draw(100, seed=(0,)))
        assert text.startswith("dataset 'mine' has only 40 images with the labels [0, 1] in its ")

    @STREAMING
    def test_global_random_states_are_untouched(self, parquet: Path, streaming: bool) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        images = open_split(parquet, streaming=streaming)
        images.draw(20, seed=(0, 0))
        list(images.batches(8, limit=20, seed=(0, 0), shard=(0, 1)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert random.getstate() == before[2]


class TestBatches:
    @STREAMING
    @pytest.mark.parametrize("limit", [None, 50, 1000])
    def test_processes_share_them_out(
        self, parquet: Path, streaming: bool, limit: int | None
    ) -> None:
        def read(rank: int, world: int) -> list[tuple[int, list[int]]]:
            images = open_split(parquet, "test", streaming=streaming)
            batches = images.batches(16, limit=limit, seed=(0, 1), shard=(rank, world))
            return [(number, [row.position for row in rows]) for number, rows in batches]

        alone = read(0, 1)
        assert [number for number, _ in alone] == list(range(len(alone)))
        assert [len(rows) for _, rows in alone[:-1]] == [16] * (len(alone) - 1)
        positions = [position for _, rows in alone for position in rows]
        assert len(positions) == len(set(positions)) == min(limit or 100, 100)
        for world in (2, 3):
            shared = [batch for rank in range(world) for batch in read(rank, world)]
            assert sorted(shared) == alone


class TestDamage:
    @STREAMING
    def test_an_image_that_cannot_be_decoded(self, tmp_path: Path, streaming: bool) -> None:
        whole = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        fromarray(noise).save(whole, "PNG")
        contents = [whole.getvalue(), whole.getvalue()[:2000], b"junk", b"", None]
        encoded = [{"bytes": c, "path": None} if c is not None else None for c in contents]
        folder = save_parquet(tmp_path / "bad", image=(datasets.Image(), encoded))
        rows = everything(open_split(folder, streaming=streaming))
        assert rows[0].image.size == (64, 64)
        for i, reason in ((1, "image file is truncated"), (2, "cannot identify image file")):
            assert message(lambda i=i: rows[i].image) == (  # type: ignore[misc]
                f"the image in row {i} of the split 'train' of dataset 'mine' is damaged "
                f"({reason}): download the dataset again, or leave such rows out by "
                "`skip_damaged: true`"
            )
        assert "row 3 of the split 'train' of dataset 'mine' is damaged" in message(
            lambda: rows[3].image
        )
        assert message(lambda: rows[4].image) == (
            "row 4 of the split 'train' of dataset 'mine' holds no image: leave such rows out by "
            "`skip_damaged: true`"
        )

    def test_a_damaged_file_in_a_folder_of_images(self, image_folder: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(image_folder, tmp_path / "pets"))
        (folder / "train" / "cat" / "1.png").write_bytes(b"junk")
        rows = everything(open_split(folder, k=2))
        assert "row 1 of the split 'train' of dataset 'mine' is damaged (cannot identify" in (
            message(lambda: rows[1].image)
        )

    @STREAMING
    def test_a_truncated_parquet_file(self, parquet: Path, tmp_path: Path, streaming: bool) -> None:
        (tmp_path / "cut").mkdir()
        content = (parquet / "train-00000-of-00001.parquet").read_bytes()
        (tmp_path / "cut" / "train.parquet").write_bytes(content[:-1000])
        assert message(lambda: open_split(tmp_path / "cut", streaming=streaming)).startswith(
            f"dataset 'mine' ({tmp_path / 'cut'}, split 'train') cannot be opened: Parquet magic"
        )

    def test_a_truncated_arrow_file(self, tmp_path: Path) -> None:
        digits(slice(0, 20)).save_to_disk(tmp_path / "saved")
        (arrow,) = (tmp_path / "saved").glob("*.arrow")
        arrow.write_bytes(arrow.read_bytes()[:2000])
        assert "split 'train') cannot be opened: " in message(
            lambda: open_split(tmp_path / "saved")
        )
        arrow.unlink()
        assert "split 'train') cannot be opened: " in message(
            lambda: open_split(tmp_path / "saved")
        )

    @STREAMING
    def test_a_split_that_is_not_there(self, parquet: Path, streaming: bool) -> None:
        text = message(lambda: open_split(parquet, "validation", streaming=streaming))
        assert text.startswith(f"dataset 'mine' ({parquet}, split 'validation') cannot be opened: ")
        assert text.endswith(("['train', 'test']", "['train', 'test']."))

    @STREAMING
    def test_a_folder_without_data(self, tmp_path: Path, streaming: bool) -> None:
        text = message(lambda: open_split(tmp_path, streaming=streaming))
        assert "cannot be opened: The directory at" in text
        assert "doesn't contain any data files" in text

    def test_no_folder(self, tmp_path: Path) -> None:
        assert message(lambda: open_split(tmp_path / "none")) == (
            f"there is no folder '{tmp_path / 'none'}': give an existing folder or a Hub id"
        )

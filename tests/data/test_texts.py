"""Texts of datasets: their columns, pairs, lengths, missing ones, and batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from text_builders import save_text, save_texts, text_recipe, texts

from coin_hf.data.images import LabelledImages
from coin_hf.data.rows import prepared_batch
from coin_hf.data.samples import draw_samples
from coin_hf.data.texts import LabelledTexts, TextRow, open_rows
from coin_hf.errors import InputError
from coin_hf.experts.expert import load_expert
from coin_hf.experts.text_preprocessing import TextPreprocessing
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import DatasetBlock

STREAMING = pytest.mark.parametrize("streaming", [False, True])
STRING = datasets.Value("string")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TextPreprocessing:
    folder = save_text(tmp_path_factory.mktemp("expert") / "bert")
    prepare = load_expert(str(folder)).preprocessing
    assert isinstance(prepare, TextPreprocessing)
    return prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("data") / "said")


def opened(path: Path, split: str = "train", k: int = 2, **block: Any) -> LabelledTexts:
    return LabelledTexts("mine", DatasetBlock(path=str(path), **block), split, k)


def everything(found: LabelledTexts) -> list[TextRow]:
    batches = found.batches(7, limit=None, seed=(0,), shard=(0, 1))
    return [row for _, rows in batches for row in rows]


def message(act: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder: Path, **columns: tuple[Any, list[Any]]) -> Path:
    """Write columns, each (feature, values), as a folder of one parquet file."""
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    data = {name: values for name, (_, values) in columns.items()}
    folder.mkdir()
    table = datasets.Dataset.from_dict(data, features=features)
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


class TestColumns:
    @STREAMING
    def test_the_one_column_of_text(self, folder: Path, streaming: bool) -> None:
        found = opened(folder, streaming=streaming)
        rows = everything(found)
        said = texts(60)
        assert found.contents == ("text",)
        assert [row.value for row in rows] == said["text"][:]
        assert [row.label for row in rows] == said["label"][:]

    @STREAMING
    def test_pairs(self, tmp_path: Path, streaming: bool, tokens: TextPreprocessing) -> None:
        path = write(
            tmp_path / "pairs",
            question=(STRING, ["a film", "a book"]),
            answer=(STRING, ["bright", "dull"]),
            label=(datasets.Value("int64"), [1, 0]),
        )
        pairs = {"text": ["question", "answer"], "label": "label", "streaming": streaming}
        rows = everything(opened(path, **pairs))
        assert [row.value for row in rows] == [("a film", "bright"), ("a book", "dull")]
        assert rows[0].prepared(tokens)["token_type_ids"].max() == 1
        single = everything(opened(path, text="answer", streaming=streaming))
        assert [row.value for row in single] == ["bright", "dull"]
        assert message(lambda: opened(path)) == (
            "dataset 'mine' has several text columns (question, answer): name one, or two for "
            "pairs of texts, as datasets.mine.text"
        )
        assert message(lambda: opened(path, text=["question", "label"])) == (
            "dataset 'mine' has no text column 'label': its columns are question (string), answer "
            "(string), label (int64)"
        )

    def test_text_that_names_the_classes_is_no_input(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "d", said=(STRING, ["warm", "cold"]), kind=(STRING, ["good", "bad"])
        )
        found = opened(path, label="kind")
        assert [(row.value, row.label) for row in everything(found)] == [("warm", 1), ("cold", 0)]

    def test_no_text(self, tmp_path: Path) -> None:
        path = write(tmp_path / "d", label=(datasets.ClassLabel(names=["a", "b"]), [0, 1]))
        assert message(lambda: opened(path)) == (
            "dataset 'mine' has no text column, only label (int64): give a dataset with a column "
            "of text"
        )

    def test_three_columns_are_no_pair(self, tmp_path: Path) -> None:
        recipe = text_recipe(tmp_path)
        recipe["datasets"]["first"]["text"] = ["a", "b", "c"]
        assert message(lambda: Recipe.from_dict(recipe)) == (
            "recipe: 'datasets.first.text': expected text (put it in quotes) or at most 2 entries, "
            "got ['a', 'b', 'c']"
        )

    def test_the_other_kind_of_column(self, folder: Path, tokens: TextPreprocessing) -> None:
        assert message(lambda: opened(folder, image="text")) == (
            "datasets.mine.image is for images, but its expert classifies texts: name the column "
            "of its texts as datasets.mine.text"
        )
        for key, value in {"text": "text", "max_length": 9}.items():
            block = DatasetBlock(path=str(folder), **{key: value})
            assert message(lambda b=block: LabelledImages("mine", b, "train", 2)) == (
                f"datasets.mine.{key} is for texts, but its expert classifies images: leave it "
                "out, or give an expert fine-tuned for text classification"
            )


class TestMissing:
    @pytest.fixture
    def holes(self, tmp_path: Path) -> Path:
        return write(
            tmp_path / "holes",
            text=(STRING, ["warm", None, "cold", None]),
            other=(STRING, ["a", "b", None, "d"]),
        )

    @STREAMING
    def test_a_missing_text(self, holes: Path, streaming: bool, tokens: TextPreprocessing) -> None:
        rows = everything(opened(holes, text="text", streaming=streaming))
        assert message(lambda: rows[1].prepared(tokens)) == (
            "row 1 of the split 'train' of dataset 'mine' holds no text: leave such rows out by "
            "`skip_damaged: true`"
        )

    @STREAMING
    def test_missing_texts_are_left_out(self, holes: Path, streaming: bool) -> None:
        single = opened(holes, text="text", streaming=streaming, skip_damaged=True)
        assert [row.position for row in everything(single)] == [0, 2]
        assert single.damaged == {1, 3}
        pairs = opened(holes, text=["text", "other"], streaming=streaming, skip_damaged=True)
        assert [row.position for row in everything(pairs)] == [0]
        assert len(single.draw(2, seed=[0])) == 2
        with pytest.raises(InputError, match="has only 2 texts in its split 'train'"):
            single.draw(3, seed=[0])

    def test_they_are_counted(self, holes: Path, tokens: TextPreprocessing) -> None:
        found = opened(holes, text="text", skip_damaged=True)
        everything(found)
        with pytest.warns(UserWarning, match="missing texts") as caught:
            samples = draw_samples([found], tokens, per_expert=2, seed=0)
        assert str(caught[0].message) == (
            "2 missing texts of mine:train are left out, as `skip_damaged` says"
        )
        assert samples.damaged == {"mine:train": 2}


class TestLengths:
    def test_texts_are_cut_to_the_datasets_length(
        self, folder: Path, tokens: TextPreprocessing
    ) -> None:
        rows = everything(opened(folder, max_length=6))
        batch = prepared_batch(rows, tokens)
        assert batch["input_ids"].shape == (60, 6)
        assert torch.equal(batch["input_ids"][0], tokens(rows[0].value, 6)["input_ids"])

    def test_a_length_that_experts_do_not_take(
        self, folder: Path, tokens: TextPreprocessing
    ) -> None:
        block = DatasetBlock(path=str(folder), max_length=37)
        assert message(lambda: open_rows(tokens, "mine", block, "train", 2)) == (
            "dataset 'mine': `max_length` is 37, but the experts take 36 tokens: give at most that"
        )

    def test_a_length_that_nobody_says(self, folder: Path, tokens: TextPreprocessing) -> None:
        unsaid = TextPreprocessing({}, None, tokens.processor, tokens.processor)
        block = DatasetBlock(path=str(folder))
        assert message(lambda: open_rows(unsaid, "mine", block, "train", 2)) == (
            "dataset 'mine': neither the tokenizer nor the network says how many tokens it takes: "
            "set `max_length` of the dataset"
        )
        block = DatasetBlock(path=str(folder), max_length=5)
        found = open_rows(unsaid, "mine", block, "train", 2)
        assert len(found.row(0).prepared(unsaid)["input_ids"]) == 5


def test_samples_are_padded_to_the_longest_of_all(folder: Path, tokens: TextPreprocessing) -> None:
    short, long = opened(folder, max_length=5), opened(folder)
    samples = draw_samples([short, long], tokens, per_expert=4, seed=0)
    mask = samples.inputs["attention_mask"]
    longest = max(
        len(tokens(long.row(position).value)["input_ids"]) for position in samples.rows[1]
    )
    assert mask.shape == (8, longest)
    assert mask[:4].sum(1).max() == 5
    assert mask.sum(1).max() == longest
    assert (samples.inputs["input_ids"][mask == 0] == tokens.processor.pad_token_id).all()
    fitting, choosing = samples.split(0.25)
    assert (len(fitting), len(choosing)) == (6, 2)
    assert samples.labels is not None

"""Columns that the recipe names are read as what they hold; what cannot be is refused."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL.Image import Image, new

from coin_hf import InputError
from coin_hf.data.images import LabelledImages
from coin_hf.data.labels import Owner
from coin_hf.recipe.blocks import DatasetBlock

GREYS = (10, 120, 230)


def encoded(grey: int) -> bytes:
    stream = io.BytesIO()
    new("L", (8, 8), grey).save(stream, "PNG")
    return stream.getvalue()


def opened(
    folder: Path,
    features: dict[str, Any],
    columns: dict[str, list[Any]],
    *classes: str,
    **more: Any,
) -> LabelledImages:
    folder.mkdir()
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    block = DatasetBlock(path=str(folder), image="png", label="kind", **more)
    return LabelledImages("d", block, "train", len(classes) or 2, owner=Owner("e", classes))


def rows(images: LabelledImages) -> list[tuple[Image, int]]:
    batches = images.batches(8, limit=None, seed=(0,), shard=(0, 1))
    return [(row.image, row.label) for _, batch in batches for row in batch]


FILES = {
    "bytes": (datasets.Value("binary"), encoded),
    "large bytes": (datasets.Value("large_binary"), encoded),
    "bytes and path, as pandas writes": (
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        lambda grey: {"bytes": encoded(grey), "path": None},
    ),
}
LABELS = {
    "booleans": (datasets.Value("bool"), [True, False, True], [1, 0, 1]),
    "floats": (datasets.Value("float64"), [1.0, 0.0, 1.0], [1, 0, 1]),
    "whole numbers": (datasets.Value("int32"), [1, 0, 1], [1, 0, 1]),
    "text": (datasets.Value("string"), ["dog", "cat", "dog"], [1, 0, 1]),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("labels", LABELS)
def test_named_columns_are_read(kind: str, labels: str, tmp_path: Path) -> None:
    feature, value = FILES[kind]
    label, given, expected = LABELS[labels]
    features = {"png": feature, "kind": label}
    columns = {"png": [value(grey) for grey in GREYS], "kind": given}
    read = rows(opened(tmp_path / "d", features, columns, "cat", "dog"))
    assert [own for _, own in read] == expected
    assert [image.getpixel((0, 0)) for image, _ in read] == list(GREYS)


def test_text_is_matched_with_the_expert_by_name(tmp_path: Path) -> None:
    features = {"png": datasets.Value("binary"), "kind": datasets.Value("string")}
    columns = {"png": [encoded(grey) for grey in GREYS], "kind": ["dog", "cat", "dog"]}
    with pytest.warns(UserWarning, match="by name"):
        images = opened(tmp_path / "d", features, columns, "dog", "emu", "cat")
    assert [label for _, label in rows(images)] == [0, 2, 0]


@pytest.mark.parametrize(
    ("label", "given", "classes", "more", "said"),
    [
        (datasets.Value("float64"), [0.5, 0.0, 1.0], ("a", "b"), {}, "no whole numbers"),
        (datasets.Value("string"), ["a", "b", "a"], (), {}, "no class names to match it with"),
        (datasets.Value("string"), ["a", "c", "a"], ("a", "b"), {}, "datasets.d.label_map"),
        (
            datasets.Value("string"),
            ["a", "b", "a"],
            ("a", "b"),
            {"streaming": True},
            "set datasets.d.streaming to false",
        ),
    ],
)
def test_labels_that_cannot_be_numbered_are_refused(
    label: Any, given: list[Any], classes: tuple[str, ...], more: Any, said: str, tmp_path: Path
) -> None:
    features = {"png": datasets.Value("binary"), "kind": label}
    columns = {"png": [encoded(grey) for grey in GREYS], "kind": given}
    with pytest.raises(InputError, match=said):
        opened(tmp_path / "d", features, columns, *classes, **more)

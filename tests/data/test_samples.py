import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from builders import NORMALISATION, digits, save_digits
from PIL.Image import fromarray, new

from coin_hf.data.images import ImageRow, LabelledImages
from coin_hf.data.rows import prepared_batch
from coin_hf.data.samples import Samples, draw_samples
from coin_hf.errors import InputError
from coin_hf.experts.preprocessing import timm_preprocessing
from coin_hf.recipe.blocks import DatasetBlock

PREPROCESSING = timm_preprocessing({"input_size": [3, 8, 8], "crop_pct": 1.0, **NORMALISATION}, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("data") / "digits")


def images(folder: Path, *labels: int, **block: Any) -> LabelledImages:
    block = DatasetBlock(path=str(folder), labels=labels or None, **block)  # type: ignore[assignment]
    return LabelledImages("mine", block, "train", 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("streaming", [False, True])
def test_they_are_the_preprocessed_rows_they_record(folder: Path, streaming: bool) -> None:
    low = images(folder, 0, 1, 2, 3, 4, streaming=streaming)
    high = images(folder, 5, 6, 7, 8, 9, streaming=streaming)
    samples = draw_samples([low, high], PREPROCESSING, per_expert=6, seed=0)
    assert len(samples) == 12
    assert samples.inputs.shape == (12, 3, 8, 8)
    assert samples.sources.tolist() == [0] * 6 + [1] * 6
    assert samples.labels is not None
    assert (samples.labels[:6] < 5).all()
    assert (samples.labels[6:] >= 5).all()
    truth = digits(slice(0, 200))
    rows = [row for part in samples.rows for row in part]
    for x, label, row in zip(samples.inputs, samples.labels, rows, strict=True):
        assert label == truth[row]["label"]
        pixels = torch.tensor(np.array(truth[row]["image"])) / 255
        torch.testing.assert_close(x, ((pixels - 0.5) / 0.5).expand(3, 8, 8))


def test_the_seed_decides(folder: Path) -> None:
    def rows(seed: int) -> tuple[tuple[int, ...], ...]:
        data = [images(folder), images(folder)]
        return draw_samples(data, PREPROCESSING, per_expert=20, seed=seed).rows

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert rows(0)[0] != rows(0)[1], "experts of one dataset draw rows of their own"


def test_an_expert_draws_the_same_whoever_joins(folder: Path) -> None:
    low, high = images(folder, 0, 1, 2), images(folder, 7, 8, 9)
    two = draw_samples([low, high], PREPROCESSING, per_expert=9, seed=4)
    three = draw_samples([low, high, images(folder)], PREPROCESSING, per_expert=9, seed=4)
    changed = draw_samples([images(folder, 5), high], PREPROCESSING, per_expert=9, seed=4)
    assert three.rows[:2] == two.rows
    assert torch.equal(three.inputs[:18], two.inputs)
    assert changed.rows[1] == two.rows[1]


def test_without_all_labels_there_are_none(tmp_path: Path, folder: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
    )
    pictures = [fromarray(np.full((8, 8), i, np.uint8)) for i in range(3)]
    data = {"image": pictures, "label": [1, None, 2]}
    (tmp_path / "some").mkdir()
    datasets.Dataset.from_dict(data, features=features).to_parquet(
        tmp_path / "some" / "train.parquet"
    )
    samples = draw_samples(
        [images(folder), images(tmp_path / "some")], PREPROCESSING, per_expert=3, seed=0
    )
    assert samples.labels is None
    assert len(samples) == 6
    fitting, choosing = samples.split(0.5)
    assert fitting.labels is choosing.labels is None


def test_too_few(folder: Path) -> None:
    few, count = images(folder, 3), digits(slice(0, 200))["label"][:].count(3)
    message = rf"has only {count} images with the labels \[3\] .* but {count + 1} were asked for"
    draw_samples([images(folder), few], PREPROCESSING, per_expert=count, seed=0)
    with pytest.raises(InputError, match=message):
        draw_samples([images(folder), few], PREPROCESSING, per_expert=count + 1, seed=0)


class TestSplit:
    samples = Samples(
        inputs=torch.arange(10.0)[:, None, None, None],
        labels=torch.arange(10) * 10,
        sources=torch.tensor([0] * 5 + [1] * 5),
        rows=((10, 11, 12, 13, 14), (25, 26, 27, 28, 29)),
    )

    def test_each_expert_sets_aside_its_last_ones(self) -> None:
        fitting, choosing = self.samples.split(0.4)
        assert fitting.rows == ((10, 11, 12), (25, 26, 27))
        assert choosing.rows == ((13, 14), (28, 29))
        assert fitting.inputs.flatten().tolist() == [0, 1, 2, 5, 6, 7]
        assert choosing.inputs.flatten().tolist() == [3, 4, 8, 9]
        assert fitting.labels is not None
        assert choosing.labels is not None
        assert fitting.labels.tolist() == [0, 10, 20, 50, 60, 70]
        assert choosing.labels.tolist() == [30, 40, 80, 90]
        assert fitting.sources.tolist() == [0, 0, 0, 1, 1, 1]
        assert choosing.sources.tolist() == [0, 0, 1, 1]

    def test_nothing_held_out_is_everything_twice(self) -> None:
        assert self.samples.split(0) == (self.samples, self.samples)

    @pytest.mark.parametrize(("share", "count"), [(0.29, 29), (0.57, 57), (0.999, 99), (0.01, 1)])
    def test_whole_samples(self, share: float, count: int) -> None:
        samples = Samples(torch.zeros(100, 1), None, torch.zeros(100), (tuple(range(100)),))
        fitting, choosing = samples.split(share)
        assert (len(fitting), len(choosing)) == (100 - count, count)

    def test_an_empty_part(self) -> None:
        with pytest.raises(InputError) as caught:
            self.samples.split(0.1)
        assert str(caught.value) == (
            "samples.held_out = 0.1 of 5 samples per expert leaves one part empty: raise "
            "`samples.per_expert`"
        )


def test_inputs_of_several_shapes_are_refused() -> None:
    rows = [ImageRow(i, 0, None, f"row {i}") for i in range(3)]
    sizes = iter([(3, 8, 8), (3, 8, 8), (3, 8, 10)])
    files = [replace(row, content={"bytes": png(), "path": None}) for row in rows]
    with pytest.raises(InputError, match=r"in row 0 and in row 2 .* \(3, 8, 8\) and \(3, 8, 10\)"):
        prepared_batch(files, lambda _: torch.ones(next(sizes)))
    assert prepared_batch(files[:1], lambda _: torch.ones(3, 8, 8)).shape == (1, 3, 8, 8)


def png() -> bytes:
    stream = io.BytesIO()
    new("L", (2, 2)).save(stream, "PNG")
    return stream.getvalue()

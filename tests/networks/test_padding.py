"""Which rows of a map's input are padding, by its axes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from coin_hf.networks.linear_maps import Convolution, LinearMap
from coin_hf.networks.padding import cut, real_rows, token_mask

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
TEXTS = {"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": MASK}


def linear(*shape: int) -> LinearMap:
    return LinearMap(F.linear, torch.zeros(*shape), torch.zeros(5, shape[-1]))


def test_the_mask_of_a_batch() -> None:
    found = token_mask(TEXTS)
    assert found is not None
    assert found.tolist() == MASK.bool().tolist()
    assert token_mask(torch.zeros(2, 4)) is None
    assert token_mask({"input_ids": TEXTS["input_ids"]}) is None
    assert token_mask({**TEXTS, "attention_mask": torch.ones(2, 4)}) is None


@pytest.mark.parametrize(
    ("shape", "count", "inner"),
    [
        ((2, 4, 3), 8, 1),  # tokens
        ((8, 3), 8, 1),  # flattened tokens, as GPT-2's `Conv1D` takes them
        ((2, 4, 5, 3), 40, 5),  # several rows a token
        ((2, 3), 2, None),  # one pooled token of each text
        ((2, 4), 2, None),  # the same, as wide as the texts are long
        ((1, 6, 3), 6, None),  # a table of relative positions
    ],
)
def test_rows_of_tokens(shape: tuple[int, ...], count: int, inner: Any) -> None:
    found = real_rows(linear(*shape), MASK.bool(), count)
    if inner is None:
        assert found is None
    else:
        assert found is not None
        assert found.tolist() == MASK.bool().flatten().repeat_interleave(inner).tolist()
    assert real_rows(linear(*shape), None, count) is None


def test_rows_of_a_convolution_along_the_text() -> None:
    weight, x = torch.zeros(5, 3, 3), torch.zeros(2, 3, 4)
    along = LinearMap(F.conv1d, x, weight, convolution=Convolution(padding=1))
    found = real_rows(along, MASK.bool(), 8)
    assert found is not None
    assert found.tolist() == MASK.bool().flatten().tolist()
    assert real_rows(along, MASK.bool(), 4) is None  # strided: its rows are no tokens


def test_a_batch_is_cut_to_its_longest_text() -> None:
    found = cut({**TEXTS, "other": torch.zeros(2, 7)})
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "input_ids": (2, 3), "attention_mask": (2, 3), "other": (2, 7)
    }  # fmt: skip
    image = torch.zeros(2, 3, 4, 4)
    assert cut(image) is image
    assert cut({**TEXTS, "attention_mask": 0 * MASK})["input_ids"].shape == (2, 4)


@pytest.mark.parametrize("shape", [(2, 6, 3), (4, 2, 3)])
def test_rows_that_cannot_be_told_are_refused(shape: tuple[int, ...]) -> None:
    """Texts padded further to whole windows, or with their tokens first, as Longformer has them."""
    with pytest.raises(ValueError, match="of which none can be told from padding"):
        real_rows(linear(*shape), MASK.bool(), 8)
    assert real_rows(linear(*shape), None, 8) is None

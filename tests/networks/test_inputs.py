"""Inputs as a tensor or as a mapping of tensors: the same functions, the same results."""

from collections import UserDict

import torch
from torch import nn

from coin_hf.networks.inputs import (
    batches,
    cast,
    concatenate,
    count,
    fit_to,
    repeat_first,
    stack,
    take,
)

TEXT = {
    "input_ids": torch.tensor([[5, 6], [7, 8], [9, 0]]),
    "attention_mask": torch.tensor([[1, 1], [1, 1], [1, 0]]),
    "weights": torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]),
}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_mapping_is_counted_cut_and_joined() -> None:
    assert count(TEXT) == 3
    assert count(UserDict(TEXT)) == 3
    parts = list(batches(TEXT, 2))
    assert [count(part) for part in parts] == [2, 1]
    assert same(concatenate(parts), TEXT)
    assert same(stack([take(TEXT, i) for i in range(3)]), TEXT)
    assert take(TEXT, [2, 0])["input_ids"].tolist() == [[9, 0], [5, 6]]
    assert take(TEXT, torch.tensor([False, True, False]))["input_ids"].tolist() == [[7, 8]]
    assert repeat_first(TEXT, 3)["input_ids"].tolist() == [[5, 6]] * 3


def test_tensors_go_the_same_way() -> None:
    x = torch.arange(6.0).view(3, 2)
    assert count(x) == 3
    assert torch.equal(concatenate(list(batches(x, 2))), x)
    assert torch.equal(stack(list(x)), x)
    assert repeat_first(x, 2).tolist() == [[0, 1]] * 2


def test_only_floating_tensors_are_cast() -> None:
    half = fit_to(TEXT, nn.Linear(2, 2).half())
    assert {name: value.dtype for name, value in half.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "weights": torch.float16,
    }
    assert cast(torch.ones(2, dtype=torch.bool), torch.float16).dtype == torch.bool
    assert fit_to(torch.ones(2), nn.Linear(2, 2, device="meta")).is_meta

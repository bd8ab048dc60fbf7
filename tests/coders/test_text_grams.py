"""Gram matrices of text networks: padding has no part in them, nor has the batch size."""

from typing import Any

import pytest
import torch
from text_builders import KINDS, sentences, text_model, tokenizer

from coin_hf.coders import gram_matrices
from coin_hf.networks.inputs import take


@pytest.fixture(params=KINDS)
def kind(request: Any) -> str:
    return str(request.param)


def test_padded_texts_count_as_cut_ones(kind: str) -> None:
    model, tokens = text_model(kind).double(), tokenizer(kind)
    said = sentences(7, 3)[0]
    alone = [
        gram_matrices(model, dict(tokens([text], truncation=True, return_tensors="pt")))
        for text in said
    ]
    padded = dict(tokens(said, truncation=True, padding="max_length", return_tensors="pt"))
    assert not padded["attention_mask"].all()
    for size in (1, 3, 7):
        found = gram_matrices(model, padded, batch_size=size)
        assert found.keys() == alone[0].keys()
        for name, value in found.items():
            expected = sum(each[name] for each in alone) / len(said)
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_a_text_of_padding_alone_adds_nothing() -> None:
    model, tokens = text_model("bert").double(), tokenizer("bert")
    found = dict(tokens(["the film was dull", "the"], padding=True, return_tensors="pt"))
    first = gram_matrices(model, take(found, slice(0, 1)))
    found["attention_mask"][1] = 0
    both = gram_matrices(model, found)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(2 * both[name], first[name])

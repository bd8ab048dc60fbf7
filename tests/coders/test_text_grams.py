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


def test_a_network_that_lengthens_its_texts_is_refused() -> None:
    from transformers import LongformerConfig, LongformerForSequenceClassification

    config = LongformerConfig(
        vocab_size=400,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        attention_window=8,
    )
    model = LongformerForSequenceClassification(config).eval()
    found = dict(tokenizer("bert")(["the film was dull", "the"], padding=True, return_tensors="pt"))
    with pytest.raises(ValueError, match="cannot leave it out; take the coder 'coin'"):
        gram_matrices(model, {k: v for k, v in found.items() if k != "token_type_ids"})

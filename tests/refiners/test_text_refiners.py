"""Refitting of text networks: padding has no part in it."""

import copy
from functools import cache
from typing import Any

import pytest
import reference
import torch
from text_builders import KINDS, sentences, text_model, tokenizer
from torch import Tensor, nn

from coin_hf.coders import average
from coin_hf.refiners import refit_layers

BETAS = [0.3, 0.7]


def three(kind: str) -> tuple[nn.Module, list[nn.Module]]:
    """Two experts in float64, and their plain average."""
    experts = [text_model(kind, seed).double().requires_grad_(False) for seed in (1, 2)]
    coded = copy.deepcopy(experts[0])
    thetas = [dict(expert.named_parameters()) for expert in experts]
    coded.load_state_dict(average(thetas, betas=BETAS), strict=False)
    return coded, experts


@cache
def tokens_of(kind: str) -> Any:
    return tokenizer(kind)


def batch(kind: str, said: list[str], length: int | None = None, *, cut: int = 0) -> Any:
    """A batch of texts, padded to the longest or to a length; all cut to `cut` tokens if given."""
    return dict(
        tokens_of(kind)(
            said,
            padding="max_length" if length else True,
            truncation=bool(cut),
            max_length=cut if cut and not length else length,
            return_tensors="pt",
        )
    )


def same_length(kind: str, count: int) -> tuple[Any, Any]:
    """Texts that are all of nine tokens, and the same padded to twenty."""
    found = batch(kind, [f"{text} and {text} of old" for text in sentences(count, 3)[0]], cut=9)
    assert found["attention_mask"].all()
    assert found["input_ids"].shape[1] == 9
    pad = tokens_of(kind).pad_token_id
    padded = {
        name: nn.functional.pad(value, (0, 11), value=pad if name == "input_ids" else 0)
        for name, value in found.items()
    }
    return found, padded


@pytest.mark.parametrize("kind", KINDS)
def test_padded_texts_are_refitted_as_cut_ones(kind: str) -> None:
    coded, experts = three(kind)
    cut, padded = same_length(kind, 24)
    fit, held_out = (slice(0, 18), slice(18, 24))

    def refitted(every: Any) -> dict[str, Tensor]:
        parts = [{name: value[part] for name, value in every.items()} for part in (fit, held_out)]
        return refit_layers(coded, experts, *parts, betas=BETAS)

    expected, found = refitted(cut), refitted(padded)
    before = dict(coded.named_parameters())
    assert sum(not torch.equal(found[name], before[name]) for name in found) > 8
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_layers_are_the_slow_regressions_on_each_text_alone(kind: str) -> None:
    coded, experts = three(kind)
    said = sentences(12, 5)[0]
    alone = [batch(kind, [text]) for text in said]
    assert len({each["input_ids"].shape[1] for each in alone}) > 2
    padded = batch(kind, said)
    expected = reference.refitted(copy.deepcopy(coded), experts, alone, betas=BETAS, strength=0.1)
    found = refit_layers(coded, experts, padded, padded, betas=BETAS, strength=0.1)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)

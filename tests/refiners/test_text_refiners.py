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
from coin_hf.refiners import Unsuitable, find_head, find_maps, refit_head, refit_layers

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


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_the_ridge_regression_on_what_it_sees_of_each_text(kind: str) -> None:
    coded, experts = three(kind)
    said = sentences(12, 5)[0]
    padded = batch(kind, said)
    with torch.no_grad():
        targets = sum(b * e(**padded).logits for b, e in zip(BETAS, experts, strict=True))
    weight = find_head(coded, padded)[0]
    assert weight == ("score.weight" if kind == "gpt2" else weight)
    found = refit_head(coded, padded, targets, strength=0.1, batch_size=5)
    name = weight.removesuffix(".weight")
    layer = coded.get_submodule(name)
    z = torch.stack(
        [reference.seen(coded, name, batch(kind, [s]))[0].reshape(-1, 24)[-1] for s in said]
    )
    scale = z.square().mean() * len(z)
    old, ridge = layer.weight, torch.full((24,), 0.1 * float(scale)).double()
    if layer.bias is not None:
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        old = torch.cat([old, layer.bias[:, None]], 1)
        ridge = torch.cat([ridge, torch.tensor([0.1 * len(z)]).double()])
    residual = targets - z @ old.T
    change = torch.linalg.solve(z.T @ z + torch.diag(ridge), z.T @ residual).T
    torch.testing.assert_close(found[weight], layer.weight + change[:, :24], rtol=1e-6, atol=1e-8)


def test_a_head_behind_which_logits_are_changed_is_refused() -> None:
    coded, _ = three("gpt2")

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = coded

        def forward(self, **inputs: Tensor) -> Tensor:
            return 2 * self.inner(**inputs).logits

    with pytest.raises(Unsuitable, match="does not end in a linear map"):
        find_head(Doubled().eval(), batch("gpt2", ["the film", "the film was bright"]))


def test_texts_in_windows_are_refused_before_anything_runs() -> None:
    """As Longformer pads them further, so that rows of a map cannot be told from padding."""

    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(99, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            mask = nn.functional.pad(attention_mask, (0, -attention_mask.shape[1] % 8))
            x = nn.functional.pad(
                self.words(input_ids), (0, 0, 0, mask.shape[1] - len(input_ids.T))
            )
            return (self.head(x) * mask[..., None]).sum(1)

    said = {"input_ids": torch.arange(5)[None], "attention_mask": torch.ones(1, 5).long()}
    with pytest.raises(Unsuitable, match="of which none can be told from padding"):
        find_maps(Windowed().eval(), said)
    assert torch.equal(said["attention_mask"], torch.ones(1, 5).long())

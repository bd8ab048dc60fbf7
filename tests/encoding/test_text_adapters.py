"""Adapters of text classifiers, each with a head of its own: coded like full checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_builders import save_text, save_texts, text_recipe
from transformers import AutoModelForSequenceClassification

from coin_hf import CodedEnsemble, InputError, Recipe, encode, load_expert, recode

pytestmark = pytest.mark.slow


def save_adapter(base: Path, folder: Path, seed: int, names: list[str]) -> dict[str, torch.Tensor]:
    """Write a LoRA adapter with a classifier of those classes; return what peft merges."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    adapted.config.save_pretrained(folder)
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return merged


@pytest.mark.filterwarnings("ignore:the experts have labels of their own")
@pytest.mark.filterwarnings("ignore:.*adapter")
@pytest.mark.filterwarnings("ignore:dataset .* numbers its classes in another order")
def test_text_adapters_are_coded(tmp_path: Path) -> None:
    base = save_text(tmp_path / "base")
    own = {"one": ["bad", "good"], "two": ["good", "fair", "bad"]}
    merged = {
        name: save_adapter(base, tmp_path / name, seed, labels)
        for seed, (name, labels) in enumerate(own.items())
    }
    for data in ("first", "second"):
        save_texts(tmp_path / data)
    for name, labels in own.items():
        expert = load_expert(str(tmp_path / name))
        assert expert.task == "text-classification"
        assert expert.own_names == tuple(labels)
        for key, value in expert.model.state_dict().items():
            assert torch.equal(value, merged[name][key]), key
    recipe = Recipe.from_dict(text_recipe(tmp_path, fisher={"save": True}))
    ensemble = encode(recipe)
    ensemble.save_pretrained(tmp_path / "coded")
    assert sorted(ensemble.coded.label_names or ()) == ["bad", "fair", "good"]
    loaded = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    assert loaded.label_names == [tuple(labels) for labels in own.values()]
    x = loaded.preprocess(["the film was bright", "the day was dull and the room was cold"])
    for missing in own:
        for a, b in zip(loaded(x, missing=[missing]), ensemble(x, missing=[missing]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    said = json.loads((tmp_path / "coded/coin.json").read_text())
    assert said["experts"][0]["base_revision"].startswith("sha256:")
    recode(tmp_path / "coded", tmp_path / "again", betas=[0.5, 0.5])
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "coded" / file).read_bytes()


def test_an_adapter_without_a_tokenizer_anywhere_is_refused(tmp_path: Path) -> None:
    base = save_text(tmp_path / "base")
    save_adapter(base, tmp_path / "one", 0, ["bad", "good"])
    for file in base.glob("*token*"):
        file.unlink()
    for file in base.glob("vocab*"):
        file.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_expert(str(tmp_path / "one"))

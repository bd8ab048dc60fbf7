"""Text classifiers from recipe to decoded answers, and by plain transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from text_builders import KINDS, make_text_world, save_text, sentences, text_recipe
from transformers import AutoModelForSequenceClassification, pipeline

from coin_hf import CodedEnsemble, InputError, Recipe, diagonal_fisher, encode, evaluate, recode
from coin_hf.coders import fisher_average
from coin_hf.encoding.context import RunContext
from coin_hf.encoding.inputs import draw, load_experts, open_tests
from coin_hf.evaluation.erasures import evaluate_erasures

CHANCE = pytest.mark.filterwarnings("ignore:expert '.*' is right on")
SAID = ["the film was bright", "the book was dull and the room was cold", "a meal"]


@CHANCE
@pytest.mark.parametrize("kind", KINDS)
def test_encoded_saved_loaded_and_decoded(tmp_path: Path, kind: str) -> None:
    path = make_text_world(tmp_path, kind)
    ensemble = encode(Recipe.from_yaml(path))
    folder = tmp_path / "coded"
    ensemble.save_pretrained(folder)
    loaded = CodedEnsemble.from_pretrained(folder, experts=True)
    assert loaded.coded.task == "text-classification"
    x = loaded.preprocess(SAID)
    first, second = loaded(x)
    decoded = loaded(x, missing=["two"])
    coded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        exact = 2 * coded(**x).logits - first
    torch.testing.assert_close(decoded[1], exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded[0], first, rtol=0, atol=0)
    assert (decoded[1] - second).abs().max() > 0  # it is computed, not the expert's
    for text, logits in zip(SAID, loaded.coded_logits(x)[0].softmax(1), strict=True):
        scores = pipeline("text-classification", model=str(folder))(text, top_k=None)
        plain = {each["label"]: each["score"] for each in scores}
        assert logits.tolist() == pytest.approx([plain["bad"], plain["good"]], abs=1e-5)
    single = loaded.preprocess(SAID[1])
    assert all(value.dim() == 1 for value in single.values())
    alone = loaded({name: value[None] for name, value in single.items()}, missing=["two"])
    torch.testing.assert_close(alone[1][0], decoded[1][1], rtol=1e-4, atol=1e-5)


@CHANCE
@pytest.mark.parametrize("kind", KINDS)
def test_the_coded_parameters_are_those_of_texts_alone(tmp_path: Path, kind: str) -> None:
    """Fishers on each text without padding, one by one, and the merge of them."""
    recipe = Recipe.from_yaml(make_text_world(tmp_path, kind, samples={"per_expert": 3}))
    run = RunContext()
    experts = load_experts(recipe, run)
    samples = draw(recipe, experts, run)
    mask = samples.inputs["attention_mask"]
    assert not mask.all()
    fishers = []
    for expert in experts:
        parts = [
            diagonal_fisher(
                expert.model,
                {name: value[i : i + 1, : mask[i].sum()] for name, value in samples.inputs.items()},
            )
            for i in range(len(samples))
        ]
        fishers.append({name: sum(p[name] for p in parts) / len(parts) for name in parts[0]})
    expected = fisher_average(
        [expert.parameters for expert in experts], fishers, betas=[0.5, 0.5], lam=0.01
    )
    found = encode(recipe).coded.parameters
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@CHANCE
class TestWorld:
    @pytest.fixture(scope="class")
    def world(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("world")
        path = make_text_world(folder, "distilbert", fisher={"save": True})
        encode(Recipe.from_yaml(path)).save_pretrained(folder / "coded")
        return folder

    def test_records_say_the_task(self, world: Path) -> None:
        for name in ("coin.json", "result.json"):
            assert json.loads((world / "coded" / name).read_text())["task"] == "text-classification"

    def test_the_card(self, world: Path) -> None:
        card = (world / "coded" / "README.md").read_text()
        assert "pipeline_tag: text-classification" in card
        assert "30 texts for one, 30 texts for two" in card
        assert "image" not in card.lower()
        blocks = [part.split("~~~")[0] for part in card.split("~~~python")[1:]]
        code = "\n".join(blocks).replace("your-name/coded", str(world / "coded"))
        found: dict[str, Any] = {}
        exec(code, found)
        assert type(found["model"]).__name__ == "DistilBertForSequenceClassification"
        assert [each.shape for each in found["logits"]] == [(2, 2), (2, 2)]

    def test_recoding_keeps_the_tokenizer(self, world: Path, tmp_path: Path) -> None:
        recode(world / "coded", tmp_path / "again", betas=[0.7, 0.3])
        for name in ("tokenizer.json", "tokenizer_config.json"):
            old, new = (folder / name for folder in (world / "coded", tmp_path / "again"))
            assert old.read_bytes() == new.read_bytes()
        again = CodedEnsemble.from_pretrained(tmp_path / "again", experts=True)
        assert again.coin.task == "text-classification"
        assert again(again.preprocess(SAID), missing=[0])[0].shape == (3, 2)
        same = tmp_path / "same"
        recode(world / "coded", same, betas=[0.5, 0.5])
        first, second = (folder / "model.safetensors" for folder in (world / "coded", same))
        assert first.read_bytes() == second.read_bytes()

    def test_an_expert_joins(self, world: Path, tmp_path: Path) -> None:
        from coin_hf.recoding.changes import Newcomer

        save_text(tmp_path / "three", "distilbert", 3, names=["bad", "good"])
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "three" / name).write_bytes((world / "one" / name).read_bytes())
        new = Newcomer(str(tmp_path / "three"), "first")
        recode(world / "coded", tmp_path / "more", add=[new])
        more = CodedEnsemble.from_pretrained(tmp_path / "more", experts=True)
        assert len(more(more.preprocess(SAID), missing=["three"])) == 3

    def test_measured_again(self, world: Path) -> None:
        result = evaluate(world / "coded", overrides=["datasets.first.max_length=7"])
        assert result.task == "text-classification"
        assert result.datasets["first"].max_length == 7

    def test_batches_do_not_matter(self, world: Path) -> None:
        ensemble = CodedEnsemble.from_pretrained(world / "coded", experts=True)
        recipe, run, experts = ensemble.coin.recipe, RunContext(), ensemble.experts or ()
        found = []
        for size in (1, 7, 30):
            settings = recipe.evaluation.model_copy(update={"batch_size": size})
            measured = evaluate_erasures(
                {expert.name: expert.model for expert in experts},
                {"coin": [ensemble.model]},
                ensemble.code,
                open_tests(recipe, experts, run),
                experts[0].preprocessing,
                settings=settings,
                seed=0,
            )
            found.append([each.scores["coin"] for each in measured.erasures])
        for each in zip(*found, strict=True):
            assert len({score.nda for score in each}) == 1
            losses = [score.coding_loss for score in each]
            assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

    def test_augmented_texts_are_refused(self, world: Path) -> None:
        recipe = text_recipe(world, coder="regmean", augment={"copies": 1})
        with pytest.raises(InputError, match="augment: only images can be augmented"):
            encode(Recipe.from_dict(recipe))

    @pytest.mark.parametrize("coder", ["averaging", "regmean", "distillation"])
    def test_other_coders(self, world: Path, coder: str) -> None:
        settings = {"distillation": {"epochs": 1}} if coder == "distillation" else {}
        recipe = text_recipe(world, coder=coder, **settings)
        assert encode(Recipe.from_dict(recipe)).result.mean_nda[coder] is not None

    def test_refined(self, world: Path) -> None:
        recipe = text_recipe(world, refine=["layerwise", "head"], samples={"per_expert": 20})
        steps = encode(Recipe.from_dict(recipe)).result.refinements
        assert steps is not None
        assert [each.step for each in steps] == ["layerwise", "head"]
        assert steps[0].kept
        assert steps[0].after is not None
        assert steps[0].before is not None
        assert steps[0].after < steps[0].before


def test_sentences_differ() -> None:
    said, labels = sentences(40)
    assert len(set(said)) > 30
    assert set(labels) == {0, 1}


@CHANCE
@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_the_same_model(tmp_path: Path) -> None:
    steps = {"refine": ["layerwise", "head"], "samples": {"per_expert": 10}}
    path = make_text_world(tmp_path, "gpt2", **steps)
    expected = encode(Recipe.from_yaml(path))
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "coin_hf"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "encode", str(path)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = CodedEnsemble.from_pretrained(tmp_path / "coded")
    assert found.result.run.processes == 2
    for name, value in found.coded.parameters.items():
        torch.testing.assert_close(value, expected.coded.parameters[name], rtol=1e-4, atol=1e-5)


@CHANCE
@pytest.mark.filterwarnings("ignore:dataset 'second' numbers its classes in another order")
def test_text_experts_with_labels_of_their_own(tmp_path: Path) -> None:
    """Two sets of labels that share one: heads are widened, and each answers its own classes."""
    path = make_text_world(tmp_path, "bert")
    save_text(tmp_path / "two", "bert", 1, classes=3, names=["good", "mixed", "bad"])
    with pytest.warns(UserWarning, match="labels of their own"):
        encode(Recipe.from_yaml(path)).save_pretrained(tmp_path / "coded")
    ensemble = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    one, two = ensemble(ensemble.preprocess(SAID), missing=["two"])
    assert (one.shape, two.shape) == ((3, 2), (3, 3))
    assert ensemble.label_names == [("bad", "good"), ("good", "mixed", "bad")]
    plain = pipeline("text-classification", model=str(tmp_path / "coded"))
    assert {each["label"] for each in plain(SAID[0], top_k=None)} == {"bad", "good", "mixed"}

"""The line from recipe to result, against slow code that does each step by hand."""

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import datasets
import evaluate as hf_evaluate
import numpy as np
import pytest
import timm
import torch
from builders import digits, recipe_dict, save_timm, timm_model
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import coin_hf
from coin_hf.errors import InputError
from coin_hf.metrics.nda import NDA
from coin_hf.pipeline import encode, evaluate, resolve
from coin_hf.recipe import Recipe

BETAS = (0.25, 0.75)
LABELS = {"low": range(5), "high": range(5, 10)}


def networks(coded: Path) -> tuple[list[nn.Module], nn.Module]:
    """Both experts and the coded model, as timm loads them."""
    folders = [coded.parent / "low", coded.parent / "high", coded]
    low, high, c = (timm.create_model(f"local-dir:{f}", pretrained=True).eval() for f in folders)
    return [low, high], c


def pixels(image: Image) -> Tensor:
    """The digits' 8x8 pixels as the experts want them, shape (1, 3, 32, 32)."""
    data = timm.data.create_transform(
        input_size=(3, 32, 32), interpolation="bicubic", crop_pct=1.0, mean=0.5, std=0.5
    )
    return data(image.convert("RGB"))[None]


@pytest.fixture(scope="module")
def by_hand(coded: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """For each missing expert and method the decoded, true and own classes, and the loss."""
    experts, c = networks(coded)
    plain, _ = networks(coded)
    mean = plain[0]
    state = zip(mean.state_dict().values(), plain[1].state_dict().values(), strict=True)
    for mine, other in state:
        if mine.is_floating_point():
            mine.copy_(BETAS[0] * mine + BETAS[1] * other)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for i, (name, labels) in enumerate(LABELS.items()):
        methods: dict[str, dict[str, Any]] = {}
        for row in digits(slice(200, 300)):
            if row["label"] not in labels:
                continue
            x = pixels(row["image"])
            with torch.no_grad():
                f = [expert(x)[0] for expert in experts]
                exact = BETAS[0] * f[0] + BETAS[1] * f[1]
                coded_logits = {"coin": c(x)[0], "averaging": mean(x)[0], "output average": exact}
            j = 1 - i
            answers = {
                method: (logits - BETAS[j] * f[j]) / BETAS[i]
                for method, logits in coded_logits.items()
            } | {
                "no coded model": f[j],
                "coded model alone": coded_logits["coin"],
                "coded alone, own labels": coded_logits["coin"][list(labels)],
            }
            for method, decoded in answers.items():
                entry = methods.setdefault(
                    method, {"predictions": [], "references": [], "own": [], "losses": []}
                )
                best = int(decoded.argmax())
                entry["predictions"].append(
                    list(labels)[best] if method == "coded alone, own labels" else best
                )
                entry["references"].append(row["label"])
                entry["own"].append(int(f[i].argmax()))
                if method in coded_logits:
                    entry["losses"].append(float(((coded_logits[method] - exact) ** 2).sum()))
        found[name] = methods
    return found


def result_of(coded: Path) -> dict[str, Any]:
    return json.loads((coded / "result.json").read_text())


def test_every_number_is_the_one_found_by_hand(coded: Path, by_hand: dict[str, Any]) -> None:
    result = result_of(coded)
    assert [erasure["missing"] for erasure in result["erasures"]] == ["low", "high"]
    for erasure in result["erasures"]:
        methods = by_hand[erasure["missing"]]
        assert list(erasure["scores"]) == list(methods)
        for method, entry in methods.items():
            score, n = erasure["scores"][method], len(entry["references"])
            columns = ("predictions", "references", "own")
            triples = list(zip(*(entry[column] for column in columns), strict=True))
            right = sum(decoded == truth for decoded, truth, _ in triples)
            own = sum(mine == truth for _, truth, mine in triples)
            assert erasure["points"] == n
            assert erasure["expert_accuracy"] == pytest.approx(own / n)
            assert score["nda"] == pytest.approx(100 * right / own)
            assert score["decoded_accuracy"] == pytest.approx(right / n)
            agreeing = sum(decoded == mine for decoded, _, mine in triples)
            assert score["agreement"] == pytest.approx(agreeing / n)
            if method in ("no coded model", "coded model alone", "coded alone, own labels"):
                assert score["coding_loss"] is None
            else:
                assert score["coding_loss"] == pytest.approx(
                    sum(entry["losses"]) / n, rel=1e-4, abs=1e-9
                )
        assert erasure["scores"]["output average"]["nda"] == 100
    for method, mean in result["mean_nda"].items():
        ndas = [erasure["scores"][method]["nda"] for erasure in result["erasures"]]
        assert mean == pytest.approx(sum(ndas) / 2)
    assert 0 < result["mean_nda"]["coin"] < 100  # neither nothing nor everything was decoded


def test_the_metric_by_evaluate_and_as_a_class_agree(coded: Path, by_hand: dict[str, Any]) -> None:
    loaded = hf_evaluate.load(str(Path(coin_hf.__file__).parent / "metrics" / "nda"))
    for erasure in result_of(coded)["erasures"]:
        for method, entry in by_hand[erasure["missing"]].items():
            columns = {
                "predictions": entry["predictions"],
                "references": entry["references"],
                "expert_predictions": entry["own"],
            }
            found = loaded.compute(**columns)
            assert found == NDA().compute(**columns)
            score = erasure["scores"][method]
            assert found["nda"] == score["nda"]
            assert found["agreement"] == score["agreement"]
            assert found["decoded_accuracy"] == score["decoded_accuracy"]
            assert found["expert_accuracy"] == erasure["expert_accuracy"]


def test_the_parameters_are_those_of_the_recorded_samples(coded: Path) -> None:
    coin = json.loads((coded / "coin.json").read_text())
    train = digits(slice(0, 200))
    rows = coin["samples"]["rows"]
    for name, labels in LABELS.items():
        assert len(set(rows[name])) == 8
        assert all(train[row]["label"] in labels for row in rows[name])
    x = torch.cat([pixels(train[row]["image"]) for name in LABELS for row in rows[name]])
    experts, c = networks(coded)
    fishers = [coin_hf.diagonal_fisher(expert, x, estimator="exact") for expert in experts]
    thetas = [dict(expert.named_parameters()) for expert in experts]
    for name, value in c.named_parameters():
        weights = [
            beta * (f[name].double() + coin["lam"]) for beta, f in zip(BETAS, fishers, strict=True)
        ]
        total = sum(w * theta[name].double() for w, theta in zip(weights, thetas, strict=True))
        expected = (total / (weights[0] + weights[1])).float()
        torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-5, atol=1e-7)


def test_lambda_is_the_best_candidate_and_the_result_says_by_what(coded: Path) -> None:
    result = result_of(coded)
    choice = result["choice"]
    assert (choice["by"], choice["samples"]) == ("nda", 16)
    assert [entry["value"] for entry in choice["scores"]] == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    best = max(choice["scores"], key=lambda entry: (entry["nda"], -entry["coding_loss"]))
    assert result["lam"] == best["value"]
    # The choice's own numbers for that lambda are those of the coded model on the samples.
    coin = json.loads((coded / "coin.json").read_text())
    experts, c = networks(coded)
    train, losses = digits(slice(0, 200)), []
    with torch.no_grad():
        for name in LABELS:
            for row in coin["samples"]["rows"][name]:
                x = pixels(train[row]["image"])
                exact = BETAS[0] * experts[0](x) + BETAS[1] * experts[1](x)
                losses.append(float(((c(x) - exact) ** 2).sum()))
    assert best["coding_loss"] == pytest.approx(sum(losses) / 16, rel=1e-4)


@pytest.mark.slow
def test_without_labels_lambda_is_chosen_by_agreement(world: Path, tmp_path: Path) -> None:
    blocks = {}
    for name, labels in LABELS.items():
        train = digits(slice(0, 200)).filter(lambda row, labels=labels: row["label"] in labels)
        parts = {"train": train.remove_columns("label"), "test": digits(slice(200, 240))}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
        blocks[name] = {"path": str(tmp_path / name)}
    result = encode(
        Recipe.from_dict({**recipe_dict(world), "lam": "auto", "datasets": blocks})
    ).result
    assert result["choice"]["by"] == "agreement"
    assert all("nda" not in entry for entry in result["choice"]["scores"])
    assert [erasure["points"] for erasure in result["erasures"]] == [40, 40]


@pytest.mark.slow
def test_held_out_samples_alone_choose_lambda(world: Path) -> None:
    samples = {"per_expert": 8, "held_out": 0.25}
    given = Recipe.from_dict({**recipe_dict(world), "samples": samples, "lam": "auto"})
    result = encode(given).result
    assert result["choice"]["samples"] == 4
    assert result["samples"]["count"] == 16


@pytest.mark.slow
def test_evaluate_repeats_the_result_or_measures_other_data(coded: Path, tmp_path: Path) -> None:
    first = result_of(coded)
    again = evaluate(coded)
    assert again["erasures"] == first["erasures"]
    assert again["mean_nda"] == first["mean_nda"]
    assert again["lam"] == first["lam"]

    other = tmp_path / "digits"
    other.mkdir()
    digits(slice(300, 330)).to_parquet(other / "test-00000-of-00001.parquet")
    moved = evaluate(coded, overrides=[f"datasets.{name}.path={other}" for name in LABELS])
    assert sum(erasure["points"] for erasure in moved["erasures"]) == 30
    revisions = {block["revision"] for block in moved["datasets"].values()}
    pinned = Recipe.from_dict(
        {**recipe_dict(coded.parent), "datasets": {k: {"path": str(other)} for k in LABELS}}
    )
    assert revisions == {block.revision for block in resolve(pinned).datasets.values()}
    assert revisions != {block["revision"] for block in first["datasets"].values()}

    with pytest.raises(InputError, match=r"'betas=.*encode again"):
        evaluate(coded, overrides=["betas=[0.5, 0.5]"])
    with pytest.raises(InputError, match="are both test data"):
        evaluate(coded, overrides=["evaluation.split=train[:10]"])


def test_evaluate_refuses_data_that_changed(coded: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(coded.parent, tree)
    digits(slice(300, 330)).to_parquet(tree / "digits" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="digits has changed: expected revision sha256:"):
        evaluate(tree / "coded")


@pytest.mark.slow
def test_three_experts(coded: Path, tmp_path: Path) -> None:
    betas = (0.5, 0.25, 0.25)
    save_timm(tmp_path / "even", timm_model(2))
    given = recipe_dict(coded.parent, betas=list(betas), evaluation={"limit": 20})
    given["experts"].append({"model": str(tmp_path / "even"), "dataset": "even"})
    given["datasets"]["even"] = {**given["datasets"]["low"], "labels": [0, 2, 4, 6, 8]}
    ensemble = encode(Recipe.from_dict(given))
    assert [one["missing"] for one in ensemble.result["erasures"]] == ["low", "high", "even"]
    assert [one["points"] for one in ensemble.result["erasures"]] == [20, 20, 20]
    assert ensemble.result["samples"]["count"] == 24
    controls = [one["scores"]["output average"]["nda"] for one in ensemble.result["erasures"]]
    # The third expert was never fitted: where it is never right there is no NDA of it.
    assert controls[:2] == [100.0, 100.0]
    assert controls[2] in (100.0, None)
    x = torch.cat([pixels(row["image"]) for row in digits(slice(200, 204))])
    with torch.no_grad():
        f = [expert.model(x) for expert in ensemble.experts]
        c = ensemble.model(x)
    for i in range(3):
        others = sum(betas[j] * f[j] for j in range(3) if j != i)
        answers = ensemble(x, missing=[i])
        torch.testing.assert_close(answers[i], (c - others) / betas[i])
        assert all(torch.equal(answers[j], f[j]) for j in range(3) if j != i)


@pytest.mark.slow
def test_streaming_finds_the_same_numbers(coded: Path) -> None:
    overrides = [f"datasets.{name}.streaming=true" for name in LABELS]
    streamed = evaluate(coded, overrides=overrides)
    assert streamed["erasures"] == evaluate(coded)["erasures"]


@pytest.mark.slow
def test_encode_streams(world: Path) -> None:
    given = recipe_dict(world)
    for block in given["datasets"].values():
        block["streaming"] = True
    ensemble = encode(Recipe.from_dict(given))
    rows = ensemble.coin["samples"]["rows"]
    train = digits(slice(0, 200))
    assert all(len(set(rows[name])) == 8 for name in LABELS)
    assert all(train[row]["label"] in LABELS[name] for name in LABELS for row in rows[name])
    assert [erasure["points"] for erasure in ensemble.result["erasures"]] == [48, 52]


def test_differing_statistics_are_told(world: Path, tmp_path: Path) -> None:
    odd = timm_model(1)
    with torch.no_grad():
        dict(odd.named_buffers())["conv1.1.running_mean"] += 0.5
    save_timm(tmp_path / "odd", odd)
    given = recipe_dict(world)
    given["experts"][1]["model"] = str(tmp_path / "odd")
    with pytest.warns(UserWarning, match="statistics differ in 1 buffers .first: conv1.1.running"):
        ensemble = encode(Recipe.from_dict(given))
    state = load_file(world / "low" / "model.safetensors")
    mean = (state["conv1.1.running_mean"] + odd.state_dict()["conv1.1.running_mean"]) / 2
    torch.testing.assert_close(ensemble.model.state_dict()["conv1.1.running_mean"], mean)


def test_equal_statistics_are_not_warned_of_and_the_random_state_stays(world: Path) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        encode(Recipe.from_dict(recipe_dict(world)))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_the_same_recipe_gives_the_same_result(world: Path) -> None:
    one, two = (encode(Recipe.from_dict(recipe_dict(world))) for _ in range(2))
    assert one.coin == two.coin
    assert {k: v for k, v in one.result.items() if k != "run"} == {
        k: v for k, v in two.result.items() if k != "run"
    }
    state = two.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())

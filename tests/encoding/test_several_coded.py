"""The whole line with several coded models: recipe, encoding, repository, evaluation, card."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import reference
import timm
import torch
from builders import digits, fit_classifier, recipe_dict, save_timm, save_transformers, timm_model
from safetensors.torch import load_file

from coin_hf import CodedEnsemble, InputError, Recipe, encode
from coin_hf.erasure.design import design
from coin_hf.pipeline import evaluate
from coin_hf.reports.tables import table

pytestmark = pytest.mark.slow

GROUPS = {"low": [0, 1, 2, 3], "middle": [3, 4, 5, 6], "high": [6, 7, 8, 9]}
NAMES = list(GROUPS)


def three(world: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for three experts with overlapping labels and two coded models."""
    return {
        **recipe_dict(world),
        "experts": [{"model": str(folder / name), "dataset": name} for name in GROUPS],
        "datasets": {
            name: {"path": str(world / "digits"), "labels": labels}
            for name, labels in GROUPS.items()
        },
        "coded": 2,
        "fisher": {"estimator": "exact", "save": True},
        "output": str(folder / "coded"),
        **changes,
    }


@pytest.fixture(scope="module")
def places(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for seed, (name, labels) in enumerate(GROUPS.items()):
        model = timm_model(seed)
        fit_classifier(model, digits(slice(0, 200)), labels)
        save_timm(folder / name, model)
    return folder


@pytest.fixture(scope="module")
def made(world: Path, places: Path) -> CodedEnsemble:
    ensemble = encode(Recipe.from_dict(three(world, places)))
    ensemble.save_pretrained(places / "coded")
    return ensemble


def test_coded_is_a_short_way_to_write_designed_betas(world: Path, places: Path) -> None:
    recipe = Recipe.from_dict(three(world, places))
    assert recipe.betas == design(3, 2)
    assert recipe.coded is None
    assert Recipe.from_dict(recipe.dump()) == recipe
    given = Recipe.from_dict(three(world, places, betas=[list(row) for row in design(3, 2)]))
    assert given == recipe
    one = Recipe.from_dict(three(world, places, coded=1))
    assert one.betas == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": [0.2, 0.3, 0.5]}, "'coded' asks for 2 coded models, but 'betas' has 1 rows"),
        ({"coded": 0}, "'coded': expected at least 1, got 0"),
        ({"coded": "two"}, "'coded': expected a whole number, got 'two'"),
        ({"coded": True}, "'coded': expected a whole number, got True"),
        ({"betas": [[0.2, 0.3, 0.5], [0.2, 0.3]]}, "row 1 of betas has 2 values (0.2, 0.3) for 3"),
        ({"betas": [[0.2, 0.3, 0.5], [0.2, "a", 0.5]]}, "'betas.1.1': expected a number, got 'a'"),
        ({"betas": [[0.2, 0.3, 0.5], 0.5]}, "'betas.1': expected a list, got 0.5"),
        (
            {"betas": [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]},
            "are not an erasure code: experts",
        ),
        (
            {"fisher": {"save": "full"}},
            "'fisher.save': expected true or false or 'half', got",
        ),
        (
            {"samples": {"draws": {"a": "lo"}}},
            "the draw 'a' names the dataset 'lo', but `datasets`",
        ),
        ({"samples": {"draws": {}}}, "'samples.draws': expected 1 or more entries"),
    ],
)
def test_mistakes_in_the_recipe(
    world: Path, places: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Recipe.from_dict(three(world, places, **changes))


def test_the_parameters_are_the_formula(made: CodedEnsemble) -> None:
    assert made.experts is not None
    assert made.fishers is not None
    thetas = [expert.parameters for expert in made.experts]
    for row, coded in zip(design(3, 2), made.coded_models, strict=True):
        name = "layer1.0.conv1.weight"
        expected = reference.merged(
            [{name: theta[name]} for theta in thetas],
            [{name: fisher[name]} for fisher in made.fishers],
            row,
            0.01,
        )
        torch.testing.assert_close(
            coded.parameters[name].double(), expected[name], rtol=1e-5, atol=1e-7
        )
    assert not torch.equal(
        made.coded_models[0].parameters[name], made.coded_models[1].parameters[name]
    )


def test_every_pattern_is_measured(made: CodedEnsemble) -> None:
    result = made.result
    found = [(erasure["missing"], *erasure["beside"]) for erasure in result["erasures"]]
    singles = [(name,) for name in NAMES]
    doubles = [
        pair
        for a, b in (("low", "middle"), ("low", "high"), ("middle", "high"))
        for pair in ((a, b), (b, a))
    ]
    assert found == singles + doubles
    assert result["patterns"] == {"measured": 6, "possible": 6}
    assert list(result["mean_nda_several"]) == ["2"]
    for erasure in result["erasures"]:
        assert erasure["scores"]["output average"]["nda"] == 100
        assert erasure["scores"]["output average"]["agreement"] == 1
    ndas = [e["scores"]["coin"]["nda"] for e in result["erasures"] if e["beside"]]
    assert result["mean_nda_several"]["2"]["coin"] == pytest.approx(sum(ndas) / 6)


def test_a_decoded_answer_by_hand(made: CodedEnsemble) -> None:
    assert made.experts is not None
    x = torch.stack([made.preprocess(image) for image in digits(slice(200, 220))["image"]])
    with torch.no_grad():
        f = [expert.model(x).double() for expert in made.experts]
        c = [coded.model(x).double() for coded in made.coded_models]
    (a, b), (p, q) = [[row[0], row[2]] for row in design(3, 2)]
    left = c[0] - design(3, 2)[0][1] * f[1]
    right = c[1] - design(3, 2)[1][1] * f[1]
    det = a * q - b * p  # Cramer's rule
    expected = ((q * left - b * right) / det, (a * right - p * left) / det)
    answers = made(x, missing=[0, 2])
    torch.testing.assert_close(answers[0].double(), expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(answers[2].double(), expected[1], rtol=1e-3, atol=1e-3)
    assert torch.equal(answers[1].double(), f[1])
    alone = made(x, missing=[1], coded=[1])[1].double()
    betas = design(3, 2)[1]
    by_hand = (c[1] - betas[0] * f[0] - betas[2] * f[2]) / betas[1]
    torch.testing.assert_close(alone, by_hand, rtol=1e-3, atol=1e-3)
    assert not torch.equal(made(x, missing=[1])[1], alone.float())


def test_too_many_missing(made: CodedEnsemble) -> None:
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"experts \[0, 1, 2\] from experts .* coded models \[0, 1\]"
    ):
        made(x, missing=[0, 1, 2])
    with pytest.raises(ValueError, match=r"experts \[0, 1\] from .* one coded model replaces one"):
        made(x, missing=[0, 1], coded=[1])
    with pytest.raises(ValueError, match="there is no coded model 2: they are numbered 0 to 1"):
        made(x, missing=[0], coded=[2])


def test_the_calibration_is_what_the_samples_say(made: CodedEnsemble) -> None:
    assert made.experts is not None
    rows = made.coin["samples"]["rows"]
    images = [digits(slice(0, 200))[i]["image"] for name in NAMES for i in rows[name]]
    x = torch.stack([made.preprocess(image) for image in images])
    with torch.no_grad():
        f = [expert.model(x).double() for expert in made.experts]
        c = [coded.model(x).double() for coded in made.coded_models]
    losses = [
        reference.coding_loss([each.tolist() for each in f], answer.tolist(), row)
        for row, answer in zip(design(3, 2), c, strict=True)
    ]
    calibration = made.coin["calibration"]
    assert calibration["losses"] == pytest.approx(losses, rel=1e-4)
    assert made.code.losses == tuple(calibration["losses"])
    residuals = made.code.residual(dict(enumerate(f)), dict(enumerate(c)))
    above = (residuals > calibration["threshold"]).sum().item()
    assert calibration["samples"] == len(x) == 24
    assert above == 1  # 24 samples, 1 in 100 above


def test_a_corrupted_expert_is_noticed(made: CodedEnsemble) -> None:
    assert made.experts is not None
    x = torch.stack([made.preprocess(image) for image in digits(slice(200, 240))["image"]])
    assert made.suspect(x).float().mean() < 0.5
    head = made.experts[1].model.get_classifier()
    kept = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.add_(torch.randn(kept.shape, generator=torch.Generator().manual_seed(0)))
    try:
        assert made.suspect(x).float().mean() > 0.9
    finally:
        with torch.no_grad():
            head.weight.copy_(kept)
    for found in made.result["detection"]:
        assert 0 <= found["false_alarms"] < found["noticed"] <= 1


def test_the_repository_holds_every_coded_model(made: CodedEnsemble, places: Path) -> None:
    folder = places / "coded"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "README.md",
        "coin.json",
        "result.json",
        "nda.png",
        "erasure.svg",
        "config.json",
        "model.safetensors",
        "coded-1/config.json",
        "coded-1/model.safetensors",
        *(f"fisher/{name}.safetensors" for name in GROUPS),
    }
    coin = json.loads((folder / "coin.json").read_text())
    assert coin["betas"] == [list(row) for row in design(3, 2)]
    assert coin["fisher"]["save"] is True
    x = torch.stack([made.preprocess(image) for image in digits(slice(200, 208))["image"]])
    read = CodedEnsemble.from_pretrained(folder, experts=True)
    for c, place in enumerate((folder, folder / "coded-1")):
        plain = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(plain(x), made.coded_models[c].model(x))
            assert torch.equal(plain(x), read.coded_models[c].model(x))
    for missing in ([0], [1, 2]):
        for one, other in zip(made(x, missing=missing), read(x, missing=missing), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(made.suspect(x), read.suspect(x))


def test_evaluating_again_gives_the_same_numbers(made: CodedEnsemble, places: Path) -> None:
    again = evaluate(places / "coded")
    for key in ("erasures", "mean_nda", "mean_nda_several", "patterns", "detection"):
        assert again[key] == made.result[key]


def test_the_card_and_the_table_tell_every_pattern(made: CodedEnsemble, places: Path) -> None:
    card = (places / "coded" / "README.md").read_text()
    assert (
        "2 **coded models**, made without training from 3 fine-tuned `test_resnet` networks" in card
    )
    assert "| β of `coded-1` | 0.1642 (low), 0.3207 (middle), 0.5151 (high) |" in card
    assert "| worst amplification of a coded model's error | 6.1 |" in card
    assert 'timm.create_model(f"local-dir:{folder}/coded-1", pretrained=True)' in card
    assert card.count("type: nda") == 3
    printed = table(made.result)
    assert "NDA where 2 experts are missing at once:" in printed
    for erasure in made.result["erasures"]:
        if erasure["beside"]:
            nda = f"{erasure['scores']['coin']['nda']:.1f}"
            pattern = rf"^{erasure['missing']} +{erasure['beside'][0]} +{re.escape(nda)} "
            assert re.search(pattern, printed, flags=re.MULTILINE)
            row = f"| {erasure['missing']} | {erasure['beside'][0]} | {nda} |"
            assert row in card


def test_all_experts_may_be_missing(world: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**recipe_dict(world), "coded": 2})
    result = encode(recipe).result
    both = [erasure for erasure in result["erasures"] if erasure["beside"]]
    assert [erasure["missing"] for erasure in both] == ["low", "high"]
    assert all("no coded model" not in erasure["scores"] for erasure in both)
    assert all(erasure["scores"]["output average"]["nda"] == 100 for erasure in both)
    assert "-" in table(result).splitlines()[-1]


def test_lambda_is_one_number_for_all_coded_models(world: Path, places: Path) -> None:
    ensemble = encode(
        Recipe.from_dict(
            three(world, places, lam="auto", fisher={"estimator": "exact", "save": False})
        )
    )
    choice = ensemble.result["choice"]
    assert [entry["value"] for entry in choice["scores"]] == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    best = max(choice["scores"], key=lambda entry: (entry[choice["by"]], -entry["coding_loss"]))
    assert ensemble.coin["lam"] == best["value"]
    assert ensemble.fishers is None


def test_transformers_load_subfolders(world: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    for seed, name in enumerate(("low", "high")):
        save_transformers(tmp_path / name, seed)
    recipe = recipe_dict(world)
    recipe["experts"] = [{"model": str(tmp_path / n), "dataset": n} for n in ("low", "high")]
    ensemble = encode(
        Recipe.from_dict({**recipe, "coded": 2, "fisher": {"estimator": "exact", "save": "half"}})
    )
    ensemble.save_pretrained(tmp_path / "coded")
    x = torch.randn(2, 3, 32, 32)
    for subfolder, coded in (("", 0), ("coded-1", 1)):
        model = AutoModelForImageClassification.from_pretrained(
            tmp_path / "coded", subfolder=subfolder
        )
        with torch.no_grad():
            assert torch.equal(model(x).logits, ensemble.coded_models[coded].model(x).logits)
    card = (tmp_path / "coded" / "README.md").read_text()
    assert 'subfolder="coded-1"' in card
    fisher = load_file(tmp_path / "coded" / "fisher" / "low.safetensors")
    assert {value.dtype for value in fisher.values()} == {torch.bfloat16}
    read = CodedEnsemble.from_pretrained(tmp_path / "coded")
    read.save_pretrained(tmp_path / "again")  # the Fishers are not read, so not written
    assert json.loads((tmp_path / "again" / "coin.json").read_text())["fisher"]["save"] is False
    assert not (tmp_path / "again" / "fisher").exists()


def test_every_nda_against_loops(made: CodedEnsemble) -> None:
    """Each pattern's numbers, counted image by image on the missing expert's test set."""
    assert made.experts is not None
    data = digits(slice(200, 300))
    for erasure in made.result["erasures"]:
        i = NAMES.index(erasure["missing"])
        lost = [i, *(NAMES.index(name) for name in erasure["beside"])]
        decoded, own, truths = [], [], []
        for image, label in zip(data["image"], data["label"], strict=True):
            if label in GROUPS[erasure["missing"]]:
                x = made.preprocess(image)[None]
                decoded.append(reference.predicted(made(x, missing=lost)[i][0].tolist()))
                with torch.no_grad():
                    own.append(reference.predicted(made.experts[i].model(x)[0].tolist()))
                truths.append(label)
        assert erasure["points"] == len(truths)
        score = erasure["scores"]["coin"]
        assert score["nda"] == pytest.approx(reference.nda(decoded, truths, own), abs=4)
        same = sum(a == b for a, b in zip(decoded, own, strict=True)) / len(own)
        assert score["agreement"] == pytest.approx(same, abs=0.03)  # a tie or two, in float32


def test_a_sample_of_the_patterns_is_told(made: CodedEnsemble) -> None:
    result = {**made.result, "patterns": {"measured": 256, "possible": 696}}
    told = "NDA where 2 experts are missing at once (256 of 696 patterns were measured, drawn):"
    assert told in table(result)

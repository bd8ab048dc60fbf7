"""`refine` in a recipe: steps that are kept only where they help, told in result and card."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import digits, recipe_dict

from coin_hf import CodedEnsemble, encode
from coin_hf.data.augmentation import enlarge
from coin_hf.encoding.context import EncodingContext, RunContext
from coin_hf.encoding.encoder import run_coder
from coin_hf.encoding.fitted_coder import enlarged
from coin_hf.encoding.inputs import draw, load_experts
from coin_hf.errors import InputError
from coin_hf.evaluation.methods import CONTROLS
from coin_hf.recipe import Recipe
from coin_hf.recoding.recode import recode
from coin_hf.recoding.tune_betas import tune_betas
from coin_hf.records.coin import CoinRecord
from coin_hf.records.measurements import Passes
from coin_hf.refiners import refit_head, refit_layers
from coin_hf.reports.card import model_card
from coin_hf.reports.tables import table
from coin_hf.repository.folder import read_repository

pytestmark = pytest.mark.slow

BETAS = [0.25, 0.75]
STEPS = [{"step": "layerwise", "strength": 0.1}, {"step": "head", "strength": 1.0}]
AUGMENT = {"copies": 2, "transforms": ["shift", "mixup"]}


def context(world: Path, **changes: Any) -> EncodingContext:
    samples = {"per_expert": 20, "seed": 0}
    recipe = Recipe.from_dict({**recipe_dict(world), "betas": BETAS, "samples": samples, **changes})
    run = RunContext()
    experts = load_experts(recipe, run)
    return EncodingContext(run, recipe, experts, draw(recipe, experts, run))


def same(a: Any, b: Any) -> bool:
    found, expected = a.coded[0].parameters, b.coded[0].parameters
    return all(torch.equal(value, expected[name]) for name, value in found.items())


@torch.no_grad()
def loss(given: EncodingContext, model: torch.nn.Module, x: torch.Tensor) -> float:
    exact = sum(b * e.model(x) for b, e in zip(BETAS, given.experts, strict=True))
    return float((model(x) - exact).square().sum(1).mean())


def test_steps_are_their_functions_one_after_the_other(world: Path) -> None:
    given = context(world, refine=STEPS, augment=AUGMENT)
    found = run_coder(given)
    fit, held_out = given.samples.split(0.2)
    assert (len(fit), len(held_out)) == (32, 8)
    x = torch.cat(
        [fit.inputs, *enlarge(fit.inputs, copies=2, transforms=["shift", "mixup"], seed=0)]
    )
    model = copy.deepcopy(run_coder(context(world)).coded[0].model)
    models = [expert.model for expert in given.experts]
    with torch.no_grad():
        targets = sum(b * m(x).double() for b, m in zip(BETAS, models, strict=True))
    losses = [loss(given, model, held_out.inputs)]
    changed = refit_layers(model, models, x, held_out.inputs, betas=BETAS, strength=0.1)
    model.load_state_dict(changed, strict=False)
    losses.append(loss(given, model, held_out.inputs))
    refitted = copy.deepcopy(model)
    refitted.load_state_dict(refit_head(model, x, targets, strength=1.0), strict=False)
    losses.append(loss(given, refitted, held_out.inputs))
    kept = [losses[1] < losses[0], losses[2] < losses[1]]
    assert kept[0]
    for name, value in found.coded[0].parameters.items():
        expected = (refitted if kept[1] else model).get_parameter(name)
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
    layers, head = found.refinements
    assert (layers.step, head.step, layers.kept, head.kept) == ("layerwise", "head", *kept)
    told = [layers.before, layers.after, head.before, head.after]
    assert told == pytest.approx([losses[0], losses[1], losses[1], losses[2]], rel=1e-3)
    assert (head.samples, head.held_out) == (3 * 32, 8)


def test_a_step_that_does_not_help_is_dropped(world: Path) -> None:
    """A coded model that is exact: every step can but leave it or make it worse."""
    changes = {"coder": "averaging", "experts": [recipe_dict(world)["experts"][0]] * 2}
    changes["experts"] = [{**e, "name": n} for e, n in zip(changes["experts"], "ab", strict=True)]
    given = context(world, **changes, refine=["layerwise", "head"], betas=[0.5, 0.5])
    found = run_coder(given)
    assert [each.kept for each in found.refinements] == [False, False]
    assert [each.before for each in found.refinements] == [0.0, 0.0]
    assert same(found, run_coder(context(world, **changes, betas=[0.5, 0.5])))
    ensemble = encode(given.recipe)
    assert "COIN +" not in table(ensemble.result)
    card = str(model_card(ensemble.result, "me/coded"))
    line = "`head` on 32 inputs, dropped: coding loss 0 → 0 on 8 samples that the step did not see"
    assert line in card


@pytest.mark.parametrize("worse", [1.0, float("nan")])
def test_what_a_dropped_step_did_is_undone(
    world: Path, tmp_path: Path, worse: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: torch.nn.Module, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {name: value + worse for name, value in model.named_parameters()}

    given = context(world, refine=["head"])
    with monkeypatch.context() as patch:
        patch.setattr("coin_hf.encoding.refinement.refit_head", spoil)
        found = run_coder(given)
        encode(given.recipe).save_pretrained(tmp_path / "coded")
    assert same(found, run_coder(context(world)))
    (told,) = json.loads((tmp_path / "coded" / "result.json").read_text())["refinements"]
    assert not told["kept"]
    assert (told["after"] is None) == math.isnan(worse)
    card = (tmp_path / "coded" / "README.md").read_text()
    assert ("→ no number on 8 samples" in card) == math.isnan(worse)


@pytest.mark.parametrize("coder", ["coin", "averaging", "regmean", "distillation"])
def test_no_label_enters(world: Path, coder: str) -> None:
    changes: dict[str, Any] = {"coder": coder, "distillation": {"epochs": 1}, "augment": AUGMENT}
    given = context(world, **changes, refine=["layerwise", "head"])
    labels = given.samples.labels
    assert labels is not None
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for changed in (labels[order], None):
        other = replace(given, samples=replace(given.samples, labels=changed))
        assert same(run_coder(given), run_coder(other))


def test_it_refines_what_any_coder_gives_and_every_coded_model(world: Path) -> None:
    rows = [[0.7, 0.3], [0.2, 0.8]]
    for coder in ("coin", "averaging", "regmean", "distillation"):
        given = context(
            world, coder=coder, betas=rows, refine=["layerwise"], distillation={"epochs": 1}
        )
        found = run_coder(given)
        assert [each.coded for each in found.refinements] == [0, 1]
        assert all(each.after < each.before for each in found.refinements)
        for c, row in enumerate(rows):
            alone = run_coder(
                context(
                    world, coder=coder, betas=row, refine=["layerwise"], distillation={"epochs": 1}
                )
            )
            for name, value in found.coded[c].parameters.items():
                torch.testing.assert_close(value, alone.coded[0].parameters[name])


def test_the_fisher_sees_no_copies(world: Path) -> None:
    with_copies, without = run_coder(context(world, augment=AUGMENT)), run_coder(context(world))
    assert same(with_copies, without)
    assert with_copies.passes == without.passes


def test_copies_are_the_samples_and_behind_them_their_changes(world: Path) -> None:
    given = context(world, augment=AUGMENT)
    found = enlarged(given.samples, given.recipe)
    assert len(found) == 3 * 40
    assert torch.equal(found.inputs[:40], given.samples.inputs)
    assert found.sources.tolist() == 3 * given.samples.sources.tolist()
    assert found.labels is None
    assert enlarged(given.samples, context(world).recipe) is given.samples


def test_rivals_get_the_same_copies(world: Path) -> None:
    for coder in ("regmean", "distillation"):
        more = run_coder(context(world, coder=coder, augment=AUGMENT, distillation={"epochs": 1}))
        plain = run_coder(context(world, coder=coder, distillation={"epochs": 1}))
        assert more.passes.forward == 3 * plain.passes.forward
        assert not same(more, plain)


def test_passes_are_counted(world: Path) -> None:
    plain = run_coder(context(world)).passes
    found = run_coder(context(world, refine=["layerwise", "head"], augment=AUGMENT)).passes
    held, more = 8, 3 * 32
    layers, head = 3 * (more + held), 3 * more
    assert found == plain + Passes(forward=2 * held + 3 * held + layers + head)


def test_samples_that_are_held_out_judge(world: Path) -> None:
    samples = {"per_expert": 20, "seed": 0, "held_out": 0.5}
    given = context(world, samples=samples, refine=["layerwise"])
    (found,) = run_coder(given).refinements
    assert (found.samples, found.held_out) == (20, 20)


@pytest.fixture(scope="module")
def refined(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coded repository whose model was refined, with its Fishers."""
    folder = tmp_path_factory.mktemp("refined") / "coded"
    given = context(world, refine=["layerwise"], augment=AUGMENT, fisher={"save": True})
    encode(given.recipe).save_pretrained(folder)
    return folder


def test_the_repository_tells_it_and_runs_again(refined: Path) -> None:
    coin = json.loads((refined / "coin.json").read_text())
    assert coin["refine"] == [{"step": "layerwise", "strength": "auto", "memory": "auto"}]
    assert coin["augment"] == AUGMENT
    result = json.loads((refined / "result.json").read_text())
    (told,) = result["refinements"]
    assert told["kept"]
    card = (refined / "README.md").read_text()
    losses = f"{told['before']:.4g} → {told['after']:.4g}"
    line = f"{losses} on 8 samples that the step did not see |"
    assert f"| refining | `layerwise` on 96 inputs, kept: coding loss {line}" in card
    assert "| copies | 2 of each sample (shift, mixup), for the steps of `refine` |" in card
    assert "COIN + layerwise" in card
    again = encode(CoinRecord.of(read_repository(refined, "coded")[0]).recipe)
    kept = CodedEnsemble.from_pretrained(refined).coded_models[0].parameters
    for name, value in again.coded_models[0].parameters.items():
        assert torch.equal(value, kept[name])


def test_calibration_is_of_samples_that_no_step_saw(refined: Path) -> None:
    coin = json.loads((refined / "coin.json").read_text())
    assert coin["calibration"]["samples"] == 8
    result = json.loads((refined / "result.json").read_text())
    assert coin["calibration"]["losses"] == pytest.approx([result["refinements"][0]["after"]])


def test_betas_of_a_refined_model_are_not_tuned(refined: Path) -> None:
    with pytest.raises(InputError, match="was refined, and betas are tried by re-coding, which"):
        tune_betas(refined, [0.2, 0.1])


def test_copies_that_nobody_takes_are_not_recorded(world: Path) -> None:
    ensemble = encode(context(world, augment=AUGMENT).recipe)
    assert "augment" not in ensemble.coin
    taken = encode(
        context(world, coder="regmean", regmean={"mode": "conv"}, augment=AUGMENT).recipe
    )
    assert taken.coin["augment"] == AUGMENT
    card = str(model_card(taken.result, "me/coded"))
    assert "| copies | 2 of each sample (shift, mixup), for RegMean |" in card


def test_a_row_can_do_without_the_recipes_copies(world: Path) -> None:
    coders = ["distillation", {"coder": "distillation", "name": "plain", "augment": None}]
    recipe = context(world, augment=AUGMENT, refine=["head"], compare={"coders": coders}).recipe
    first, second = map(recipe.with_coder, recipe.contenders)
    assert (first.augment, second.augment) == (recipe.augment, None)
    assert first.refine == second.refine == recipe.refine


def test_recoding_says_that_it_does_not_refine(refined: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"was refined \(layerwise\), but the re-coded models"):
        result = recode(refined, tmp_path / "new", betas=[0.5, 0.5])
    coin = json.loads((tmp_path / "new" / "coin.json").read_text())
    for record in (result, coin):
        assert not {"refine", "augment", "refinements"} & record.keys()
    assert "refined" not in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"samples": {"per_expert": 4, "seed": 0}},
            "`refine` holds out a fifth of each expert's samples, and 4 are too few: raise "
            "`samples.per_expert` to 5 or more",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_computed(
    world: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(world, refine=["layerwise"], **changes)
    monkeypatch.setattr("coin_hf.encoding.encoder.fit_coder", lambda _: pytest.fail("computed"))
    with pytest.raises(InputError) as caught:
        run_coder(given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("refine", "message"),
    [
        (["headd"], "recipe: 'refine.0': expected 'layerwise' or 'head', got 'headd'"),
        (
            [{"step": "head", "strenght": 1}],
            "recipe: unknown key 'refine.0.strenght', did you mean 'strength'?",
        ),
        (
            [{"step": "head", "strength": 0}],
            "recipe: 'refine.0.strength': expected more than 0 or 'auto', got 0",
        ),
        ("head", "recipe: 'refine': expected a list, got 'head'"),
    ],
)
def test_bad_steps(world: Path, refine: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.from_dict({**recipe_dict(world), "refine": refine})
    assert str(caught.value) == message


def test_refined_averages_are_not_taken_for_plain_ones(world: Path) -> None:
    """The control has a name of its own, and the refined coded model its own numbers."""
    recipe = context(world, coder="averaging", refine=["layerwise"]).recipe
    refined, plain = encode(recipe), encode(recipe.model_copy(update={"refine": ()}))
    assert refined.result.steps == ["layerwise"]
    assert list(refined.result.mean_nda) == [
        "averaging", "averaging, not refined", *CONTROLS,
    ]  # fmt: skip
    assert list(plain.result.mean_nda) == ["averaging", *CONTROLS]
    for mine, other in zip(refined.result.erasures, plain.result.erasures, strict=True):
        assert mine.scores["averaging, not refined"] == other.scores["averaging"]
        assert mine.scores["averaging"].coding_loss < other.scores["averaging"].coding_loss
    shown = refined.result.table()
    assert "plain averaging + layerwise" in shown
    assert shown.count("plain averaging  ") == 3  # each expert missing, and the average
    code, experts = refined.code, refined.experts
    x = torch.stack([experts[0].preprocessing(image) for image in digits(slice(200, 300))["image"]])
    with torch.no_grad():
        logits = [expert.model(x) for expert in experts]
        errors = (refined.model(x) - code.encode(logits)[0]).square().sum(1)
    for i, erasure in enumerate(refined.result.erasures):
        own = torch.tensor(digits(slice(200, 300))["label"][:]) // 5 == i
        assert erasure.scores["averaging"].coding_loss == pytest.approx(
            errors[own].mean().item(), rel=1e-4
        )

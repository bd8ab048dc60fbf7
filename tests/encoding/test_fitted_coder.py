"""Each coder in the line: what it makes is what its function makes of the recipe's samples."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import recipe_dict, save_timm, timm_model
from safetensors.torch import load_file
from torch import Tensor, nn

from coin_hf.coders import average, gram_matrices, regmean, task_arithmetic
from coin_hf.encoding.context import EncodingContext, RunContext
from coin_hf.encoding.encoder import run_coder
from coin_hf.encoding.fitted_coder import fit_coder
from coin_hf.encoding.inputs import draw, load_experts
from coin_hf.encoding.selection import FEW, measure
from coin_hf.erasure.code import ErasureCode
from coin_hf.experts.coded_model import set_values
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe
from coin_hf.records.coin import CoinRecord
from coin_hf.records.measurements import Passes
from coin_hf.reports.card import model_card
from coin_hf.repository.folder import read_repository

BETAS = [0.25, 0.75]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A foundation of the world's architecture."""
    return str(save_timm(tmp_path_factory.mktemp("start") / "start", timm_model(7)))


def context(world: Path, **changes: Any) -> EncodingContext:
    recipe = Recipe.from_dict({**recipe_dict(world), "betas": BETAS, **changes})
    run = RunContext()
    experts = load_experts(recipe, run)
    return EncodingContext(run, recipe, experts, draw(recipe, experts, run))


@contextmanager
def counted(given: EncodingContext) -> Iterator[list[int]]:
    """Count the samples that go through the experts' networks and their copies."""
    count = [0]

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        count[0] += len(args[0])

    handles = [expert.model.register_forward_pre_hook(add) for expert in given.experts]
    yield count
    for handle in handles:
        handle.remove()


def test_averaging(world: Path) -> None:
    given = context(world, coder="averaging")
    with counted(given) as count:
        found = run_coder(given)
    expected = average(given.thetas, betas=BETAS)
    assert all(torch.equal(v, expected[name]) for name, v in found.coded[0].parameters.items())
    assert (found.key, found.value, found.choice, found.history) == (None, None, None, [])
    assert found.passes == Passes(forward=0, backward=0)
    assert count == [0]


def test_task_arithmetic_chooses_alpha_on_the_samples(world: Path, start: str) -> None:
    given = context(world, coder="task_arithmetic", task_arithmetic={"foundation": start})
    with counted(given) as count:
        found = run_coder(given)
    assert found.choice is not None
    assert [entry["value"] for entry in found.choice.scores] == [
        round(0.05 * k, 2) for k in range(1, 21)
    ]
    best = max(found.choice.scores, key=lambda entry: (entry["nda"], -entry["coding_loss"]))
    assert (found.key, found.value) == ("alpha", best["value"])
    foundation = load_file(Path(start) / "model.safetensors")
    foundation = {name: foundation[name] for name in given.thetas[0]}
    expected = task_arithmetic(given.thetas, foundation, betas=BETAS, alpha=best["value"])
    for name, value in found.coded[0].parameters.items():
        torch.testing.assert_close(value, expected[name])
    assert found.passes == Passes(forward=count[0]) == Passes(forward=22 * 16)


@pytest.mark.parametrize("race", [True, False])
def test_a_race_saves_passes_and_says_so(world: Path, start: str, race: bool) -> None:
    samples = {"per_expert": 2 * FEW, "seed": 0}
    settings = {"task_arithmetic": {"foundation": start}, "samples": samples, "race": race}
    given = context(world, coder="task_arithmetic", **settings)
    with counted(given) as count:
        found = run_coder(given)
    assert found.choice is not None
    tried = [entry["samples"] for entry in found.choice.scores]
    assert sorted(tried) == ([2 * FEW] * 13 + [4 * FEW] * 7 if race else [4 * FEW] * 20)
    assert found.passes == Passes(forward=count[0]) == Passes(forward=2 * 4 * FEW + sum(tried))
    # Its own numbers, by the choice of one value at a time.
    for entry in found.choice.finalists[:2]:
        alone = context(world, coder="task_arithmetic", **settings)
        fitted = fit_coder(alone)
        coded = found.coded[0]
        set_values(coded.model, fitted.parameters(float(entry["value"]), BETAS))
        logits = [alone.logits(coded.model, alone.samples)]
        code, own = ErasureCode(BETAS), alone.own(alone.samples)
        labels = alone.samples.labels
        by_hand = measure(logits, alone.expert_logits, labels, code, own=own)
        assert {key: entry[key] for key in by_hand} == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("mode", ["linear", "conv"])
def test_regmean_takes_each_experts_own_samples(world: Path, mode: Any) -> None:
    given = context(world, coder="regmean", regmean={"mode": mode, "scale": 0.7})
    with counted(given) as count:
        found = run_coder(given)
    assert found.passes == Passes(forward=16, backward=0)
    assert count == [
        16 + 3
    ]  # one more for each expert, to find its maps; one for their orientation
    own = [given.samples.inputs[:8], given.samples.inputs[8:]]
    grams = [gram_matrices(e.model, x, mode=mode) for e, x in zip(given.experts, own, strict=True)]
    expected = regmean(given.thetas, grams, betas=BETAS, scale=0.7)
    mean = average(given.thetas, betas=BETAS)
    moved = []
    for name, value in found.coded[0].parameters.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
        if not torch.equal(value, mean[name]):
            moved.append(name)
    assert moved == [name for name in mean if name in grams[0]]
    assert (len(moved) > 1) == (mode == "conv")


def test_distillation_lowers_the_loss_it_logs(world: Path) -> None:
    settings = {"epochs": 3, "lr": 1e-4, "batch_size": 5}
    samples = {"per_expert": 8, "seed": 0, "held_out": 0.25}
    given = context(world, coder="distillation", distillation=settings, samples=samples)
    with counted(given) as count:
        found = run_coder(given)
    assert found.passes == Passes(forward=2 * 12 + 3 * 12, backward=3 * 12)
    # The log's own passes: the experts on the held-out part, the student on both after each epoch.
    assert count == [found.passes.forward + 2 * 4 + 4 * 16]
    assert [entry["epoch"] for entry in found.history] == [0, 1, 2, 3]
    train = [entry["train"]["coding_loss"] for entry in found.history]
    assert train == sorted(train, reverse=True)
    assert all({"nda", "agreement", "coding_loss"} == set(e["held_out"]) for e in found.history)

    # The last entry is the coded model's own loss on the fitting samples, by hand.
    rows = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    x, mine = given.samples.inputs[rows], torch.tensor([0] * 6 + [1] * 6)
    with torch.no_grad():
        exact = ErasureCode(BETAS).encode([expert.model(x) for expert in given.experts])[0]
        errors = (found.coded[0].model(x) - exact).square().sum(1)
    by_hand = (errors[mine == 0].mean() + errors[mine == 1].mean()) / 2
    assert train[-1] == pytest.approx(float(by_hand), rel=1e-4)

    # Epoch 0 is the averaged start.
    plain = run_coder(context(world, coder="averaging", samples=samples))
    with torch.no_grad():
        errors = (plain.coded[0].model(x) - exact).square().sum(1)
    by_hand = (errors[mine == 0].mean() + errors[mine == 1].mean()) / 2
    assert train[0] == pytest.approx(float(by_hand), rel=1e-4)


@pytest.mark.slow
def test_every_coder_makes_several_coded_models(world: Path, start: str) -> None:
    several = {"betas": [[0.7, 0.3], [0.2, 0.8]], "distillation": {"epochs": 1}}
    for coder in ("averaging", "task_arithmetic", "regmean", "distillation"):
        given = context(
            world, **several, coder=coder, task_arithmetic={"foundation": start, "alpha": 0.5}
        )
        found = run_coder(given)
        assert len(found.coded) == 2
        for c, row in enumerate(several["betas"]):
            alone = context(
                world,
                **{**several, "betas": row},
                coder=coder,
                task_arithmetic={"foundation": start, "alpha": 0.5},
            )
            expected = run_coder(alone).coded[0].parameters
            for name, value in found.coded[c].parameters.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
        if coder == "distillation":
            entries = [(entry["coded"], entry["epoch"]) for entry in found.history]
            assert entries == [(0, 0), (0, 1), (1, 0), (1, 1)]
            assert found.passes == Passes(forward=2 * 16 + 2 * 16, backward=2 * 16)


def test_coin_counts_a_backward_pass_for_each_class_or_probe(world: Path) -> None:
    assert fit_coder(context(world)).passes == Passes(forward=32, backward=320)
    probes = {"estimator": "probe", "probes": 3}
    assert fit_coder(context(world, fisher=probes)).passes == Passes(forward=32, backward=96)


SETTINGS: dict[str, dict[str, Any]] = {
    "averaging": {},
    "regmean": {"regmean": {"mode": "linear", "scale": 0.8}},
    "distillation": {"distillation": {"epochs": 1}},
    "task_arithmetic": {"task_arithmetic": {"alpha": "auto"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("coder", SETTINGS)
def test_the_repository_records_the_coder_and_repeats_it(
    coder: str, world: Path, start: str, tmp_path: Path
) -> None:
    settings = json.loads(json.dumps(SETTINGS[coder]))
    if coder == "task_arithmetic":
        settings[coder]["foundation"] = start
    given = {**recipe_dict(world), "coder": coder, "evaluation": {"limit": 10}, **settings}
    ensemble = encode(Recipe.from_dict(given))
    ensemble.save_pretrained(tmp_path / "coded")
    result = json.loads((tmp_path / "coded" / "result.json").read_text())
    assert (result["coder"], result["lam"]) == (coder, None)
    assert set(result["mean_nda"]) >= {coder, "averaging", "output average"}
    coin, _ = read_repository(tmp_path / "coded", "coded")
    if coder == "task_arithmetic":
        assert coin[coder]["alpha"] in [entry["value"] for entry in result["choice"]["scores"]]
        assert coin[coder]["foundation"] == start
        assert coin[coder]["revision"].startswith("sha256:")
    again = encode(CoinRecord.of(coin).recipe)
    state = ensemble.model.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in again.model.state_dict().items())
    text = str(model_card(result, "me/coded"))
    assert f"| coder | `{coder}` |" in text
    assert ("without training" in text) == (coder != "distillation")
    for key, value in settings.get(coder, {}).items():
        if key not in ("alpha", "foundation"):
            assert f"| {key} | {value} |" in text
    lines = text[text.index("| coder |") : text.index("| samples |")].splitlines()
    assert all(line.startswith("| ") for line in lines)


def write(folder: Path, world: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    recipe = {**recipe_dict(world), "output": str(folder / "coded"), **changes}
    path.write_text(yaml.safe_dump(recipe))
    return path


def other_head(folder: Path) -> dict[str, Any]:
    save_timm(folder / "start", timm_model(num_classes=7))
    return {
        "coder": "task_arithmetic",
        "task_arithmetic": {"foundation": str(folder / "start"), "alpha": 0.5},
    }


def other_architecture(folder: Path) -> dict[str, Any]:
    model = timm_model(architecture="test_efficientnet")
    save_timm(folder / "start", model, architecture="test_efficientnet")
    return {
        "coder": "task_arithmetic",
        "task_arithmetic": {"foundation": str(folder / "start"), "alpha": 0.5},
    }


def no_linear_layer(folder: Path) -> dict[str, Any]:
    sizes = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_chs": 8}
    for seed, name in enumerate(("low", "high")):
        model = timm_model(seed, "resnetv2_50", **sizes)
        save_timm(folder / name, model, architecture="resnetv2_50", model_args=sizes)
    experts = [{"model": str(folder / name), "dataset": name} for name in ("low", "high")]
    return {"coder": "regmean", "experts": experts}


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], list[str]]] = {
    "a foundation with another head": (
        other_head,
        ["the foundation ", "does not match the experts: 'fc.weight' has shape (7, ", "in 'low'"],
    ),
    "a foundation of another architecture": (
        other_architecture,
        ["only the foundation has 'conv_stem.weight'", "only 'low' has 'conv1.0.weight'"],
    ),
    "no foundation there": (
        lambda folder: {
            "coder": "task_arithmetic",
            "task_arithmetic": {"foundation": str(folder / "nothing")},
        },
        ["there is no folder", "nothing", "Hub id"],
    ),
    "regmean without linear layers": (
        no_linear_layer,
        ["expert 'low': RegMean in mode 'linear' finds no linear map in ResNetV2", "mode to conv"],
    ),
    "too few samples to hold some out": (
        lambda _: {
            "coder": "distillation",
            "samples": {"per_expert": 2, "held_out": 0.2},
        },
        ["samples.held_out = 0.2 of 2 samples per expert leaves one part empty"],
    ),
    "alpha": (
        lambda folder: {"task_arithmetic": {"foundation": str(folder), "alpha": -0.5}},
        ["'task_arithmetic.alpha': expected more than 0 or 'auto', got -0.5"],
    ),
    "a learning rate that is too large": (
        lambda _: {"coder": "distillation", "distillation": {"epochs": 2, "lr": 1e30}},
        ["the distillation loss is not finite: set a smaller distillation.lr"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str, world: Path, tmp_path: Path, coin_hf: Callable[..., tuple[int, str, str]]
) -> None:
    make, parts = BAD[case]
    code, out, err = coin_hf("encode", write(tmp_path, world, **make(tmp_path)))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in sentence
    assert not (tmp_path / "coded").exists()

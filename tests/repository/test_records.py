"""What a run leaves behind, and that it says how to repeat the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import recipe_dict

import coin_hf
from coin_hf.encoding.pinning import resolve
from coin_hf.errors import InputError
from coin_hf.evaluation.erasures import Measurement
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe
from coin_hf.records.coin import CoinRecord
from coin_hf.records.measurements import Erasure, Patterns, Score
from coin_hf.repository.provenance import LIBRARIES, environment
from coin_hf.repository.run_records import measured


@pytest.mark.slow
def test_the_record_is_the_recipe_as_it_was_run(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)  # paths relative to the working directory mean nothing later on
    given = Recipe.from_dict(recipe_dict(Path(".")))
    ensemble = encode(given)
    repeated = CoinRecord.of(json.loads(json.dumps(ensemble.coin.dump()))).recipe
    absolute = resolve(Recipe.from_dict(recipe_dict(world)))
    experts = tuple(e.model_copy(update={"library": "timm"}) for e in absolute.experts)
    fisher = absolute.fisher.model_copy(update={"estimator": "exact"})
    as_run = {"experts": experts, "fisher": fisher, "refine": (), "output": None}
    assert repeated == absolute.model_copy(update=as_run)
    assert encode(repeated).coin == ensemble.coin


def test_the_result_names_what_it_was_measured_on(coded: Path) -> None:
    coin = json.loads((coded / "coin.json").read_text())
    result = json.loads((coded / "result.json").read_text())
    for key in ("betas", "lam", "coder", "library", "datasets", "evaluation"):
        assert result[key] == coin[key]
    assert result["architecture"] == "test_resnet"
    assert result["num_classes"] == 10
    assert result["samples"]["count"] == 16
    assert result["run"]["device"] == "cpu"
    assert result["run"]["processes"] == 1
    assert set(result["run"]["seconds"]) == {
        "load",
        "prepare",
        "choice",
        "parameters",
        "calibration",
        "evaluation",
    }
    assert set(result["run"]["versions"]) == {"python", *LIBRARIES}
    for entry in result["experts"]:
        assert set(entry) == {"model", "revision", "name", "library", "dataset", "license"}


def test_the_environment_names_this_version() -> None:
    assert environment()["coin-hf"] == coin_hf.__version__


def test_means_over_the_erasures() -> None:
    def erasure(nda: float | None) -> Erasure:
        score = Score(nda=nda, decoded_accuracy=0.5, agreement=0.5, coding_loss=0.5)
        return Erasure(
            missing="a", beside=[], points=4, expert_accuracy=0.5, scores={"coin": score}
        )

    def measured_of(*erasures: Erasure) -> dict[str, Any]:
        return measured(Measurement(list(erasures), Patterns(measured=2, possible=2), []))

    assert measured_of(erasure(50.0), erasure(100.0))["mean_nda"] == {"coin": 75.0}
    # Where an expert is never right there is no NDA of it, and so no mean over all.
    assert measured_of(erasure(50.0), erasure(None))["mean_nda"] == {"coin": None}


def test_a_record_that_is_no_recipe_says_so(coded: Path) -> None:
    coin = json.loads((coded / "coin.json").read_text())
    with pytest.raises(InputError, match=r"is not as expected \('lam': input should be a valid n"):
        CoinRecord.of({**coin, "lam": "much"})
    with pytest.raises(InputError, match=r"coin.json: 'lam': expected at least 0 or .*, got -1.0"):
        CoinRecord.of({**coin, "lam": -1.0}).recipe  # noqa: B018

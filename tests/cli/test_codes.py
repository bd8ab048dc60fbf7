"""The commands for codes, Fishers and re-coding; every mistake is one sentence, exit code 2."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import make_world, save_digits, save_timm, timm_model
from safetensors import safe_open
from safetensors.torch import load_file

from coin_hf import Recipe, encode, evaluate
from coin_hf.cli.numbers import gathered
from coin_hf.erasure.amplification import worst_amplification
from coin_hf.erasure.design import design

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    recipe = make_world(folder, fisher={"save": True})
    encode(Recipe.from_yaml(recipe)).save_pretrained(folder / "coded")
    return folder / "coded"


def test_numbers_are_gathered() -> None:
    words = ["x", "--betas", "0.7", "0.3", "--lam", "1e-3", "--betas", "2e-1", "0.8", "--json"]
    joined = ["x", "--betas", "0.7,0.3", "--lam", "1e-3", "--betas", "2e-1,0.8", "--json"]
    assert gathered(words) == joined
    assert gathered(["--betas", "0.7,0.3"]) == ["--betas", "0.7,0.3"]
    assert gathered(["--betas"]) == ["--betas"]


@pytest.mark.slow
def test_code_prints_betas_and_every_pattern(coin_hf: Command) -> None:
    status, out, err = coin_hf("design", "--experts", "4", "--coded", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"betas: {[list(row) for row in design(4, 2)]}"
    assert [line.split("  ")[0] for line in lines[2:-1]] == [
        "0", "1", "2", "3", "0, 1", "0, 2", "0, 3", "1, 2", "1, 3", "2, 3",
    ]  # fmt: skip
    assert lines[-1] == "worst: 10.318 (normalised Vandermonde: 19.977)"
    found = json.loads(coin_hf("design", "--experts", "4", "--coded", "2", "--json")[1])
    assert found["worst"] == worst_amplification(design(4, 2))
    assert max(p["with_fewest_coded"] for p in found["patterns"]) == pytest.approx(found["worst"])


def test_code_looks_at_given_betas(coin_hf: Command) -> None:
    status, out, _ = coin_hf(
        "design", "--experts", "2", "--betas", "0.6", "0.4", "--betas", "0.3", "0.7"
    )
    assert status == 0
    assert out.startswith("betas: [[0.6, 0.4], [0.3, 0.7]]\n")


@pytest.mark.slow
def test_recode_and_evaluate(coded: Path, tmp_path: Path, coin_hf: Command) -> None:
    out = tmp_path / "out"
    status, printed, err = coin_hf(
        "recode", coded, "--output", out, "--betas", "0.7", "0.3", "--lam", "1e-3"
    )
    assert status == 0, err
    assert printed == "re-coded low, high with betas [0.7, 0.3] and lambda 0.001\n"
    assert f"not measured: run `coin-hf evaluate {out} --save`" in err
    assert "**Not measured.**" in (out / "README.md").read_text()
    # Other test data is no other data to calibrate on.
    elsewhere = evaluate(out, overrides=["datasets.low.labels=[0]", "evaluation.limit=4"])
    status, printed, err = coin_hf("evaluate", out, "--save")
    assert status == 0, err
    assert elsewhere["calibration"] == json.loads((out / "coin.json").read_text())["calibration"]
    result = json.loads((out / "result.json").read_text())
    assert result["mean_nda"]["output average"] == 100
    assert f"{result['mean_nda']['coin']:.1f}" in printed
    card = (out / "README.md").read_text()
    assert "**Not measured.**" not in card
    assert "NDA = 100" in card
    assert (out / "nda.png").is_file()
    coin = json.loads((out / "coin.json").read_text())
    assert coin["calibration"]["losses"] == result["calibration"]["losses"]
    assert result["experts"][0]["model"] == coin["experts"][0]["model"]
    # What it now says of itself is what encoding with these betas says.
    recipe = Recipe.from_yaml(coded.parent / "recipe.yaml", ["betas=[0.7, 0.3]", "lam=0.001"])
    direct = encode(recipe).result
    assert result["mean_nda"] == direct["mean_nda"]
    assert result["calibration"]["losses"] == pytest.approx(direct["calibration"]["losses"])


@pytest.mark.slow
def test_fisher_alone_equals_the_saved_one(coded: Path, tmp_path: Path, coin_hf: Command) -> None:
    low = coded.parent / "low"
    status, out, err = coin_hf("fisher", low, "--like", coded, "--output", tmp_path)
    assert status == 0, err
    file = tmp_path / "fisher" / "low.safetensors"
    assert out == f"{file}\n"
    saved = coded / "fisher" / "low.safetensors"
    one, other = load_file(file), load_file(saved)
    assert all((one[name] == other[name]).all() for name in other)
    with safe_open(file, framework="pt") as a, safe_open(saved, framework="pt") as b:
        assert {**a.metadata(), "versions": ""} == {**b.metadata(), "versions": ""}


def test_fisher_of_a_dataset(tmp_path: Path, coin_hf: Command) -> None:
    save_digits(tmp_path / "digits")
    save_timm(tmp_path / "one", timm_model())
    status, _, err = coin_hf(
        "fisher", tmp_path / "one", "--dataset", tmp_path / "digits", "--per-expert", "4",
        "--half", "--output", tmp_path / "out", "-o", "datasets.digits.labels=[1, 2]",
    )  # fmt: skip
    assert status == 0, err
    with safe_open(tmp_path / "out" / "fisher" / "one.safetensors", framework="pt") as file:
        said = file.metadata()
    assert (said["samples"], said["estimator"], said["model"]) == ("4", "probe", "./one")
    assert re.fullmatch("sha256:[0-9a-f]{64}", said["revision"])
    assert re.fullmatch("[0-9a-f]{64}", said["samples_sha256"])


@pytest.mark.slow
def test_tune_betas(coded: Path, coin_hf: Command) -> None:
    arguments = ("tune-betas", coded, "--missing", "0.4", "0.05", "--json")
    status, out, err = coin_hf(*arguments)
    assert status == 0, err
    found = json.loads(out)
    assert found["recorded"]["betas"] == [0.5, 0.5]
    ratio = found["closed_form"]["betas"][0] / found["closed_form"]["betas"][1]
    assert ratio == pytest.approx(8 ** (1 / 3), rel=1e-3)
    assert found["best"]["error"] <= min(found["recorded"]["error"], found["closed_form"]["error"])
    assert found["best"]["error"] < 0.95 * found["recorded"]["error"]
    assert err.count("error ") == found["tried"] > 3


BAD: dict[str, tuple[str, str]] = {
    "one expert": ("code --experts 1", "Invalid value"),
    "no code": (
        "code --experts 2 --betas 0.5 0.5 --betas 0.5 0.5",
        "these betas are not an erasure code: experts 0, 1 cannot be recovered from",
    ),
    "betas for others": ("code --experts 3 --betas 0.5 0.5", "2 values for 3 experts"),
    "betas are words": ("code --experts 2 --betas a,b", "expected numbers such as"),
    "no coded model": ("recode {parent}/low --output {out}", "is not a coded model"),
    "betas do not sum": ("recode {coded} --output {out} --betas 0.5 0.6", "sum to 1.1"),
    "no dataset": ("recode {coded} --output {out} --add x", "1 experts join, with 0 --dat"),
    "in use": ("recode {coded} --lam 1", "is not empty: choose another `output`"),
    "on the Hub": ("recode me/coded --lam 1", "lies on the Hub: say where to write"),
    "nowhere to go": (
        "fisher {parent}/low --dataset {parent}/digits",
        "say where the Fi",
    ),
    "no samples": ("fisher {parent}/low --output {out}", "either --dataset, once"),
    "estimator": (
        "fisher {parent}/low --dataset {parent}/digits --output {out} --estimator best",
        "'fisher.estimator': expected 'exact', 'probe' or 'auto', got 'best'",
    ),
    "too few rows": (
        "fisher {parent}/low --dataset {parent}/digits --output {out} --per-expert 999",
        "has only 200 images",
    ),
    "probabilities": ("tune-betas {coded} --missing 0.5", "one probability between 0 and"),
    "zero": ("tune-betas {coded} --missing 0.5 0", r"for each expert \(low, high\), got"),
    "measure": ("tune-betas {coded} --missing 0.5 0.5 --by nda", "--by is 'error' or 'agr"),
    "save to the Hub": ("evaluate me/coded --save", "--save writes to a folder only"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_mistakes(case: str, coded: Path, tmp_path: Path, coin_hf: Command) -> None:
    words, message = BAD[case]
    known = {"coded": coded, "parent": coded.parent, "out": tmp_path / "out"}
    status, out, err = coin_hf(*(word.format(**known) for word in words.split()))
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert re.search(message, err)
    if case != "one expert":  # the parser's own words
        assert err.count("\n") == 1
        assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []

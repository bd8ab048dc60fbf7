"""The model card: rendered from the result, read by the Hub's own card class, its code run."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from coin_hf.reports.card import model_card

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def result(coded: Path) -> dict[str, Any]:
    """A real result, as if its experts and data came from the Hub."""
    found = json.loads((coded / "result.json").read_text())
    for entry in found["experts"]:
        entry |= {"model": f"me/{entry['name']}", "revision": SHA}
    for block in found["datasets"].values():
        block |= {"path": "me/digits", "revision": SHA}
    return found


def read(result: dict[str, Any]) -> ModelCard:
    """The card as the Hub's client reads it back from its file."""
    return ModelCard(str(model_card(result, "me/coded")))


def test_metadata(result: dict[str, Any]) -> None:
    data = read(result).data
    assert data.base_model == ["me/low", "me/high"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert {"merge", "coin", "erasure-coding"} <= set(data.tags)
    assert data.datasets == ["me/digits"]
    assert data.license is None
    assert data.model_name == "coded"
    assert [one.metric_value for one in data.eval_results] == [
        round(erasure["scores"]["coin"]["nda"], 2) for erasure in result["erasures"]
    ]
    for one, name in zip(data.eval_results, ("low", "high"), strict=True):
        assert (one.task_type, one.metric_type) == ("image-classification", "nda")
        assert one.metric_name == f"NDA with '{name}' missing"
        assert one.dataset_type == "me/digits"
        assert (one.dataset_split, one.dataset_revision) == ("test", SHA)


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), None),
        (("mit", None), None),
        ((None, None), None),
    ],
)
def test_a_licence_only_if_all_experts_agree(
    licenses: tuple[str | None, ...], expected: str | None, result: dict[str, Any]
) -> None:
    for entry, license_name in zip(result["experts"], licenses, strict=True):
        entry["license"] = license_name
    assert read(result).data.license == expected
    assert ("license:" in read(result).content) == (expected is not None)


def test_folders_are_not_passed_off_as_hub_ids(result: dict[str, Any]) -> None:
    result["experts"][0]["model"] = "../low"
    for block in result["datasets"].values():
        block["path"] = "../digits"
    card = read(result)
    assert card.data.base_model == ["me/high"]
    assert card.data.datasets is None
    assert "`../low` (a folder)" in card.text
    assert "huggingface.co/../low" not in card.text
    result["experts"][1]["model"] = "./high"
    assert read(result).data.base_model is None


def test_every_number_comes_from_the_result(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["betas"] = [0.375, 0.625]
    changed["lam"] = 0.03125
    changed["choice"] = None
    changed["samples"] |= {"count": 777, "per_expert": 388, "seed": 99, "held_out": 0.5}
    changed["erasures"][0] |= {"points": 4321, "expert_accuracy": 0.111}
    changed["erasures"][0]["scores"]["coin"] = {
        "nda": 12.34567, "decoded_accuracy": 0.222, "agreement": 0.333, "coding_loss": 5.4321,
    }  # fmt: skip
    changed["mean_nda"]["coin"] = 44.44
    changed["run"] |= {"device": "abacus", "processes": 17}
    text = read(changed).text
    for part in (
        "0.375 (low), 0.625 (high)",
        "0.03125 (given in the recipe)",
        "P = 777, 388 from each expert's data, seed 99, 50% of them held out",
        "4321 images for low",
        "| low | COIN | 12.3 | 22.2 | 11.1 | 33.3 | 5.432 |",
        "| average | COIN | 44.4 |",
        "Run on abacus, 17 process(es)",
        f"| low | [me/low](https://huggingface.co/me/low) | `{SHA}` | low |",
    ):
        assert part in text
    assert read(changed).data.eval_results[0].metric_value == 12.35
    assert "best NDA among 1e-05, 0.0001, 0.001, 0.01, 0.1, 1 on 16 samples" in read(result).text


def test_a_race_says_what_each_candidate_was_tried_on(result: dict[str, Any]) -> None:
    for entry, count in zip(result["choice"]["scores"], (4, 4, 16, 4, 16, 4), strict=True):
        entry["samples"] = count
    said = (
        "(best NDA among 0.001, 0.1 on 16 samples, the best on 4 of them among "
        "1e-05, 0.0001, 0.001, 0.01, 0.1, 1; no test data)"
    )
    assert said in read(result).text


def test_an_expert_that_is_never_right_has_no_metric(result: dict[str, Any]) -> None:
    for score in result["erasures"][0]["scores"].values():
        score["nda"] = None
    card = read(result)
    assert [one.metric_name for one in card.data.eval_results] == ["NDA with 'high' missing"]
    assert "| low | COIN | n/a |" in card.text
    for score in result["erasures"][1]["scores"].values():
        score["nda"] = None
    assert read(result).data.eval_results is None


def test_a_card_of_transformers_experts(result: dict[str, Any]) -> None:
    card = read({**result, "library": "transformers"})
    assert card.data.library_name == "transformers"
    assert "timm.create_model" not in card.text
    assert len(re.findall("~~~python", card.text)) == 2


def test_names_that_mean_something_in_markdown_and_yaml(result: dict[str, Any]) -> None:
    result["experts"][0]["name"] = result["erasures"][0]["missing"] = "a|b: 'c'"
    card = read(result)
    assert card.data.eval_results[0].metric_name == "NDA with 'a|b: 'c'' missing"
    for line in card.text.splitlines():
        if line.startswith("| a"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 9)


@pytest.mark.slow
def test_the_code_blocks_run(coded: Path) -> None:
    text = (coded / "README.md").read_text()
    blocks = re.findall("~~~python\n(.*?)~~~", text, flags=re.DOTALL)
    assert len(blocks) == 3
    # As written but for the place: the folder in place of the Hub.
    code = "\n".join(blocks).replace("hf-hub:your-name/coded", f"local-dir:{coded}")
    code = code.replace("your-name/coded", str(coded))
    check = (
        "\nimport torch\nanswers = classify(Image.new('RGB', (64, 64)))\n"
        "same = model(x)\n"
        "assert torch.equal(same, ensemble.model(x))\n"
        "print(len(answers), [tuple(one.shape) for one in logits])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5 [(1, 10), (1, 10)]\n"


def test_the_erasure_is_shown_beside_the_text(result: dict[str, Any]) -> None:
    shown = (
        "![high is missing; its answer is decoded from those of the other networks](erasure.svg)"
    )
    assert shown in read(result).text


def test_the_coded_models_own_accuracy(result: dict[str, Any]) -> None:
    scores = [erasure["scores"]["coded model alone"] for erasure in result["erasures"]]
    low, high = (f"{100 * score['decoded_accuracy']:.1f} %" for score in scores)
    said = f"it is right on this share of the experts' test images: {low} for low, {high} for high."
    assert f"\nAlone, {said}\n" in read(result).text
    for erasure in result["erasures"]:  # as of an older coin-hf, or where there are no labels
        del erasure["scores"]["coded model alone"]
    assert "Alone, it is right" not in read(result).text


def test_the_experts_labels_where_they_are_recorded(result: dict[str, Any]) -> None:
    assert "| expert | repository | revision | dataset |\n" in read(result).text
    result["experts"][0]["labels"] = ["zero", "o|ne", *map(str, range(2, 12))]
    text = read(result).text
    assert "| expert | repository | revision | dataset | labels |\n|---|---|---|---|---|\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| low | [me/low]"))
    assert row.endswith("| low | zero, o&#124;ne, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more |")
    row = next(line for line in text.splitlines() if line.startswith("| high | [me/high]"))
    assert row.endswith("| high | - |")

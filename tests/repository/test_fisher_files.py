"""Fishers as files: what they say of their origin, what half precision costs, tied parameters."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import save_timm, timm_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coin_hf import InputError, fisher_average, load_expert
from coin_hf.data.samples import Samples
from coin_hf.recipe.blocks import DatasetBlock, FisherBlock
from coin_hf.recoding.streaming import write_coded
from coin_hf.repository.fisher_files import check_fisher, fisher_path, rounded, write_fisher
from coin_hf.repository.fisher_origin import drawn, fisher_metadata, samples_hash
from coin_hf.repository.mapped_tensors import Tensors, weights_in

DRAWS = [
    {"path": "a/b", "revision": "1" * 40, "config": None, "split": "train", "rows": [3, 1]},
    {"path": "./d", "revision": "sha256:2", "config": "c", "split": "train", "rows": [5]},
]


def metadata(**changes: Any) -> dict[str, str]:
    given = {
        "model": "me/low",
        "revision": "3" * 40,
        "draws": DRAWS,
        "versions": {"torch": "2"},
        "estimator": FisherBlock(estimator="exact"),
        "tied": {},
    }
    return fisher_metadata(**{**given, **changes})


def test_one_literal_file(tmp_path: Path) -> None:
    path = tmp_path / fisher_path("low")
    write_fisher(path, {"w": torch.tensor([1.0, 2.0])}, metadata())
    assert path == tmp_path / "fisher" / "low.safetensors"
    said = [[d["revision"], d["config"], d["split"], d["rows"]] for d in DRAWS]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "coin_hf_fisher": "1",
            "model": "me/low",
            "revision": "3" * 40,
            "estimator": "exact",
            "samples": "3",
            "samples_sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest(),
            "datasets": '[{"revision": "' + "1" * 40 + '", "split": "train"}, '
            '{"revision": "sha256:2", "split": "train"}]',
            "tied": "{}",
            "versions": '{"torch": "2"}',
            "parameters": "1",
        }
        assert torch.equal(file.get_tensor("w"), torch.tensor([1.0, 2.0]))


def test_probes_are_told_where_they_were_used() -> None:
    assert "probes" not in metadata()
    assert metadata(estimator=FisherBlock(estimator="probe", probes=4))["probes"] == "4"


def test_no_path_of_this_machine_is_told() -> None:
    assert metadata(model="/home/me/low")["model"] == "./low"


def test_the_hash_tells_samples_apart() -> None:
    first = samples_hash(DRAWS)
    for changed in (
        DRAWS[::-1],
        DRAWS[:1],
        [{**DRAWS[0], "rows": [1, 3]}, DRAWS[1]],
        [{**DRAWS[0], "revision": "4" * 40}, DRAWS[1]],
        [{**DRAWS[0], "split": "test"}, DRAWS[1]],
    ):
        assert samples_hash(changed) != first
    # Where a folder lies is not what it holds.
    assert samples_hash([{**DRAWS[0], "path": "elsewhere"}, DRAWS[1]]) == first


def test_held_out_samples_are_not_the_fishers() -> None:
    datasets = {"d": DatasetBlock(path="p", revision="r")}
    (draw,) = drawn({"low": "d"}, {"low": [9, 8, 7, 6]}, datasets, 0.5)
    assert draw["rows"] == [9, 8]


@pytest.mark.parametrize(("share", "count", "fitted"), [(0.29, 100, 71), (0.58, 50, 21)])
def test_as_many_samples_are_recorded_as_are_fitted(share: float, count: int, fitted: int) -> None:
    """In floating point the share is a little less than the whole number that it means."""
    assert share * count < count - fitted
    rows = tuple(range(count))
    samples = Samples(torch.zeros(count, 1), None, torch.zeros(count), (rows,))
    kept, aside = samples.split(share)
    assert (len(kept), len(aside)) == (fitted, count - fitted)
    (draw,) = drawn({"low": "d"}, {"low": rows}, {"d": DatasetBlock(path="p")}, share)
    assert draw["rows"] == list(kept.rows[0])


@pytest.mark.parametrize("lam", [0.0, 1e-5, 1e-2])
def test_half_precision_moves_theta_by_less_than_two_thousandths(
    lam: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    for experts in (2, 4):
        thetas = [
            {"w": torch.randn(20_000, generator=generator, dtype=torch.float64)}
            for _ in range(experts)
        ]
        # Ten decades, as real Fishers span.
        fishers = [
            {"w": 10 ** (10 * torch.rand(20_000, generator=generator).double() - 10)}
            for _ in range(experts)
        ]
        betas = [1 / experts] * experts
        full = fisher_average(thetas, fishers, betas=betas, lam=lam)["w"]
        half = fisher_average(thetas, [rounded(f, "half") for f in fishers], betas=betas, lam=lam)
        stack = torch.stack([theta["w"] for theta in thetas])
        distance = stack.amax(0) - stack.amin(0)
        unit = 2.0**-8
        share = ((half["w"] - full).abs() / distance).max().item()
        assert share <= unit / 2 / (1 - unit)
        assert lam > 0 or share > unit / 8, "a bound that is not far off"


def test_full_precision_is_left_alone() -> None:
    fisher = {"w": torch.rand(5)}
    for precision in (True, False):
        assert rounded(fisher, precision)["w"] is fisher["w"]
    assert rounded(fisher, "half")["w"].dtype == torch.bfloat16


def test_a_fisher_of_another_expert_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "low.safetensors"
    write_fisher(path, {"w": torch.ones(2)}, metadata())
    given: dict[str, Any] = {
        "expert": "low",
        "revision": "3" * 40,
        "shapes": {"w": (2,), "buffer": (1,)},
        "samples_sha256": samples_hash(DRAWS),
    }
    assert check_fisher(path, **given)["model"] == "me/low"
    assert check_fisher(path, **{**given, "samples_sha256": None})["samples"] == "3"
    for changes, message in (
        (
            {"revision": "4" * 40},
            "to me/low at revision 3{40}, but expert 'low' is at 4{40}",
        ),
        ({"shapes": {"v": (2,)}}, "does not fit expert 'low', which has no parameter 'w'"),
        ({"shapes": {"w": (3,)}}, r"'w' of shape \(2,\), not \(3,\)"),
        ({"samples_sha256": "0"}, "was taken on other samples than the coded model's"),
    ):
        with pytest.raises(InputError, match=message):
            check_fisher(path, **{**given, **changes})


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_parameters_are_coded_alike(tmp_path: Path) -> None:
    expert = load_expert(str(save_timm(tmp_path / "one", timm_model())))
    assert expert.tied == {}
    object.__setattr__(expert, "model", Tied())
    assert expert.tied == {"second.weight": "first.weight"}
    generator = torch.Generator().manual_seed(0)

    def state() -> dict[str, Tensor]:
        weight = torch.randn(3, 3, generator=generator)
        return {"first.weight": weight, "second.weight": weight.clone(), "count": torch.tensor(7)}

    states = [state(), state()]
    fishers = [{"first.weight": torch.rand(3, 3, generator=generator)} for _ in range(2)]
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        save_file(states[i], tmp_path / str(i) / "model.safetensors")
        save_file(fishers[i], tmp_path / f"fisher-{i}.safetensors")
    (tmp_path / "out").mkdir()
    experts = [weights_in(tmp_path / str(i), f"expert {i}") for i in range(2)]
    write_coded(
        tmp_path / "out",
        experts[0],
        experts,
        [Tensors([tmp_path / f"fisher-{i}.safetensors"], "a Fisher") for i in range(2)],
        expert.tied,
        ((0.25, 0.75),),
        0.1,
    )
    coded = load_file(tmp_path / "out" / "model.safetensors")
    only = [{"first.weight": s["first.weight"]} for s in states]
    expected = fisher_average(only, fishers, betas=[0.25, 0.75], lam=0.1)["first.weight"]
    assert torch.equal(coded["first.weight"], expected)
    assert torch.equal(coded["second.weight"], expected)
    assert coded["count"] == 7


def test_types_that_cannot_be_coded(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="expert 'x': 'w' has type U16, which cannot be coded"):
        weights_in(tmp_path, "expert 'x'")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"expert 'x' holds no model.safetensors: give a safet"):
        weights_in(tmp_path, "expert 'x'")

"""Tensors in mapped temporary files."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import save_digits, save_timm, timm_model, write_recipe
from torch import nn

from coin_hf import Expert, load_expert
from coin_hf.experts.on_disk import keep_on_disk, mapped

MEASURE = """
import sys
from pathlib import Path
from coin_hf.encoding.context import RunContext
from coin_hf.encoding.inputs import load_experts
from coin_hf.encoding.pinning import resolve
from coin_hf.recipe import Recipe

def unreclaimable():
    lines = Path("/proc/self/status").read_text().splitlines()
    kept = [line.split() for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(1024 * int(words[1]) for words in kept)

two, recipe = (resolve(Recipe.from_yaml(path)) for path in sys.argv[1:])
run = RunContext()
load_experts(two, run)  # imports, caches
before = unreclaimable()
experts = load_experts(recipe, run)
sums = [sum(value.double().sum().item() for value in e.parameters.values()) for e in experts]
size = sum(value.nbytes for value in experts[0].parameters.values())
print((unreclaimable() - before) / size, len(set(sums)))
"""


def test_equal_values_of_every_kind() -> None:
    given = {
        "matrix": torch.randn(5, 7),
        "turned": torch.randn(5, 7).t(),
        "half": torch.randn(3).bfloat16(),
        "wide": torch.randn(3, dtype=torch.float64),
        "whole": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
    }
    given["same memory"] = given["matrix"].view(7, 5)
    found = mapped(given, "these")
    assert list(found) == list(given)
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
        assert found[name].is_contiguous()
        assert found[name].data_ptr() % 64 == 0
        assert found[name].untyped_storage().nbytes() == value.nbytes, "a storage of its own"
    found["matrix"].zero_()
    assert not torch.equal(given["matrix"], found["matrix"]), "they share memory"


def test_it_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = mapped({"a": torch.arange(1000.0)}, "these")
    assert not list(tmp_path.iterdir())
    assert found["a"].sum() == 499500


def test_a_network_answers_as_before(tmp_path: Path) -> None:
    expert = load_expert(str(save_timm(tmp_path / "a", timm_model(0))))
    model: Any = expert.model
    model.register_parameter("again", model.fc.weight)
    x = torch.randn(2, 3, 32, 32)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        before = model(x)
        keep_on_disk(expert)
        assert torch.equal(model(x), before)
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert model.again is model.fc.weight, "tied"


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # a folder whose disk has no room
    expert = Expert.from_module(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        name="a",
        num_classes=3,
        preprocessing=lambda image: torch.zeros(3, 2, 2),
    )
    before = [value.data_ptr() for value in expert.parameters.values()]
    sentence = (
        r"weights of expert 'a' \(0\.0 GiB\) stay in memory, as /proc does .*only 0\.0 GiB of room"
    )
    with pytest.warns(UserWarning, match=sentence):
        keep_on_disk(expert)
    assert [value.data_ptr() for value in expert.parameters.values()] == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_experts_take_the_memory_of_one(tmp_path: Path) -> None:
    names = [f"e{number}" for number in range(5)]
    for number, name in enumerate(names):
        save_timm(
            tmp_path / name, timm_model(number, "resnet18"), architecture="resnet18"
        )  # 45 MB each
    blocks = [{"model": str(tmp_path / name), "dataset": "low"} for name in names]
    save_digits(tmp_path / "digits")
    save_digits(tmp_path / "two" / "digits")
    recipes = [
        str(write_recipe(folder, experts=experts))
        for folder, experts in ((tmp_path / "two", blocks[:2]), (tmp_path, blocks))
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *recipes],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    networks, distinct = done.stdout.split()
    assert int(distinct) == 5
    assert float(networks) < 1.5

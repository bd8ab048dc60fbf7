"""The work folder: what a stopped run leaves, and how the next one goes on from it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from builders import write_recipe
from safetensors.torch import load_file

from coin_hf import InputError, Recipe
from coin_hf.encoding.fisher_checkpoint import EVERY, FisherCheckpoints, FisherFile
from coin_hf.fisher import Partial

SLOW = {"samples": {"per_expert": 40, "seed": 0}, "fisher": {"batch_size": 1}}


def decisive(**changes: object) -> dict[str, object]:
    return {
        "experts": [{"model": "a", "revision": "1"}, {"model": "b", "revision": "2"}],
        "datasets": {"d": {"path": "d"}},
        "samples": {"per_expert": 8, "seed": 0},
        "fisher": {"estimator": "auto"},
        **changes,
    }


def run(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "coin_hf", "encode", str(folder / "recipe.yaml"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(world: Path, tmp_path: Path) -> None:
    for name in ("low", "high", "digits"):
        (tmp_path / name).symlink_to(world / name)
    write_recipe(tmp_path, **SLOW)
    partial = tmp_path / "coded.partial" / "fisher-1.0-of-1.safetensors"

    process = run(tmp_path, "--resume")
    while not partial.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = FisherFile(partial).load()
    assert kept is not None
    assert 0 < kept.done < 80
    assert not (tmp_path / "coded").exists()

    process = run(tmp_path, "--resume")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not partial.parent.exists()
    write_recipe(tmp_path, **SLOW, output=str(tmp_path / "whole"))
    process = run(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    resumed, whole = (load_file(tmp_path / f / "model.safetensors") for f in ("coded", "whole"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_other_keys_may_change_and_decisive_ones_may_not(tmp_path: Path) -> None:
    FisherCheckpoints(tmp_path / "work", {**decisive(), "lam": 0.1})
    FisherCheckpoints(tmp_path / "work", {**decisive(), "lam": 0.2, "output": "elsewhere"})
    with pytest.raises(InputError, match=r"another recipe, 'samples\.seed' differs: restore"):
        FisherCheckpoints(tmp_path / "work", decisive(samples={"per_expert": 8, "seed": 1}))
    other = [{"model": "a", "revision": "1"}, {"model": "b", "revision": "3"}]
    with pytest.raises(InputError, match=r"'experts\.1\.revision' differs"):
        FisherCheckpoints(tmp_path / "work", decisive(experts=other))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than results of coin-hf: choose"):
        FisherCheckpoints(tmp_path, decisive())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_partial_sums_round_trip_and_are_written_every_few_chunks(tmp_path: Path) -> None:
    file = FisherCheckpoints(tmp_path / "work", decisive()).fisher(1, rank=0, world=2)
    assert file.load() is None
    sums = {"w": torch.rand(3, 2), "b": torch.rand(2, dtype=torch.float64)}
    partial = Partial(done=5, batch_size=4, block=10, sums=sums)
    for _ in range(EVERY - 1):
        file.save(partial, final=False)
    assert not file.path.exists()
    file.save(partial, final=False)
    loaded = FisherFile(file.path).load()
    assert loaded is not None
    assert (loaded.done, loaded.batch_size, loaded.block) == (5, 4, 10)
    assert all(torch.equal(loaded.sums[name], value) for name, value in sums.items())
    partial.done = 6
    file.save(partial, final=True)
    loaded = FisherFile(file.path).load()
    assert loaded is not None
    assert loaded.done == 6
    assert [path.name for path in sorted(file.path.parent.iterdir())] == [
        "fisher-1.0-of-2.safetensors",
        "recipe.json",
    ]


def test_a_damaged_partial_is_one_sentence(tmp_path: Path) -> None:
    file = FisherCheckpoints(tmp_path / "work", decisive()).fisher(0, rank=0, world=1)
    file.save(Partial(1, 1, 1, {"w": torch.rand(100)}), final=True)
    content = file.path.read_bytes()
    file.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"is damaged .*: remove .*work to start over"):
        file.load()


def test_resume_needs_an_output(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from coin_hf.cli import main

    recipe = write_recipe(tmp_path)
    data = Recipe.from_yaml(recipe).dump() | {"hub": {"repo": "me/coded"}}
    del data["output"]
    recipe.write_text(json.dumps(data))
    sys.argv = ["coin-hf", "encode", str(recipe), "--push", "--resume"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--resume saves partial results beside the output: add" in capsys.readouterr().err

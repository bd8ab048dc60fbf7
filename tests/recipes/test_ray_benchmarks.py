"""The benchmarks on Ray run, small: nothing fails, and what they count adds up."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import make_world

from coin_hf import Recipe, encode

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    encode(Recipe.from_yaml(make_world(folder))).save_pretrained(folder / "coded")
    return folder


def run(script: str, world: Path, output: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), str(world / "coded")]
    images = world / "digits" / "test-00000-of-00001.parquet"
    command += ["--images", str(images), "--output", str(output), *options]
    command += ["--set", "breaker.shed=1"]  # busy cores: nothing is refused for the load
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_half_a_minute_of_kills(world: Path, tmp_path: Path) -> None:
    options = ["--seconds", "30", "--every", "15", "--rate", "3", "--sample", "2"]
    found = run("soak.py", world, tmp_path / "soak.json", *options)
    assert found["failed"] == {}
    assert found["sent"] == found["requests_counted"] == found["responses_counted"] == 130
    assert [kill["network"] for kill in found["kills"]] == ["coded-0", "expert-0"]
    assert found["answers"]["low"].keys() <= {"direct", "decoded"}
    assert {"router", "expert-1", "serve"} <= found["memory_mib"][0].keys()


def test_a_kill_coded_and_uncoded_by_turns(world: Path, tmp_path: Path) -> None:
    options = ["--rounds", "1", "--requests", "40", "--rate", "5", "--cases", "kill"]
    kill = run("ray_tail.py", world, tmp_path / "tail.json", *options)["rounds"]["kill"]["0"]
    assert kill["killed"]["expert"] == 0
    assert len(kill["asked"]) == 40
    for _, _, coded, expert, answer in kill["asked"]:
        assert not (coded and answer == "failed")
        assert not (answer == "decoded" and not coded)
        assert expert in (0, 1)
    before = (tmp_path / "tail.json").read_text()
    run("ray_tail.py", world, tmp_path / "tail.json", *options)  # nothing is left to run
    assert (tmp_path / "tail.json").read_text() == before

"""What the simulation says, against what is known."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coin_hf.serve.rate_region import rate_region
from coin_hf.serve.simulation import Scenario, simulate


def area(n_m: tuple[int, int]) -> float:
    """The area of a region of rates of two experts, by fine directions."""
    angles = np.linspace(0, np.pi / 2, 721)
    mixes = np.stack([np.cos(angles), np.sin(angles)], 1)
    reach = np.array(rate_region(*n_m, mixes.tolist()))[:, None] * mixes
    x, y = reach.T
    return float(0.5 * np.abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])))


def test_the_rate_region_of_three_servers_for_two() -> None:
    # MDS(3, 2): one expert alone can have two queries a second, both together two.
    assert rate_region(2, 1, [[1, 0], [0, 1], [1, 1]]) == pytest.approx([2, 2, 1], abs=1e-6)
    assert area((2, 1)) == pytest.approx(2.0, abs=1e-3)


def test_uncoded_is_a_queue() -> None:
    # M/G/1: the mean wait is load / (2 (1 - load)) (1 + spread^2) of a service time.
    scenario = Scenario(loads=(0.5,), count=8000, spread=0.33)
    found = next(each for each in simulate(scenario) if each.layout == "uncoded")
    assert found.machines == 2
    assert found.work == pytest.approx(1.0, abs=0.02)
    wait = 0.5 / (2 * 0.5) * (1 + 0.33**2)
    assert 1.0 <= found.p50 <= 1 + wait + 0.5
    assert found.p99 > 1 + 2 * wait
    assert found.failed == found.refused == 0


@pytest.mark.slow
def test_with_one_down_coding_holds_half_the_load() -> None:
    scenario = Scenario(loads=(0.2, 0.4, 0.6), count=3000, down=1)
    by = {(each.layout, each.load): each for each in simulate(scenario)}
    for load in (0.2, 0.4, 0.6):
        assert by["uncoded", load].failed == pytest.approx(0.5, abs=0.05)
        assert by["coded", load].failed < 0.01
        assert by["replicas", load].failed == 0
    assert by["coded", 0.2].refused < 0.02
    assert by["coded", 0.6].refused > 0.1  # the other server would be in use more than it can
    assert by["coded", 0.2].p99 < 5 * by["replicas", 0.2].p99


@pytest.mark.slow
def test_where_coding_wins_and_where_it_does_not() -> None:
    slow = {"slow": {"lasting": 50}, "queries": "all", "loads": (0.3,), "count": 4000}
    by = {each.layout: each for each in simulate(Scenario.model_validate(slow))}
    assert by["coded"].p99 < 0.3 * by["uncoded"].p99
    # In the memory of one network more; a standby needs that of all.
    assert by["coded"].machines == by["standby"].machines == 3
    plain = {each.layout: each for each in simulate(Scenario(loads=(0.6,), count=4000))}
    assert plain["coded"].p99 == pytest.approx(plain["uncoded"].p99, rel=0.15)


def test_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text("experts: 2\nloads: [0.3]\ncount: 300\nstragglers: {share: 0.05}\n")
    figure = tmp_path / "tail.png"
    command = [sys.executable, "-m", "coin_hf", "simulate", str(file), "--figure", str(figure)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "load  layout    machines" in ran.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert [each["layout"] for each in found] == ["uncoded", "replicas", "coded", "standby"]
    assert all(math.isfinite(each["p99"]) for each in found)
    none = [*command, "--json", "-o", "down=1", "-o", "queries=all"]
    ran = subprocess.run(none, capture_output=True, text=True, check=True)
    assert "NaN" not in ran.stdout  # which is no JSON
    assert json.loads(ran.stdout)[0]["p99"] is None
    ran = subprocess.run([*command, "-o", "down=3"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "`down` is 3, but there are 2 experts" in ran.stderr
    ran = subprocess.run([*command[:-1], "tail.txt"], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2
    assert "tail.txt is no figure" in ran.stderr

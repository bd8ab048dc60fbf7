"""How much memory a computation may take."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from coin_hf.networks.cgroup import room_in_cgroups
from coin_hf.networks.memory import spare_bytes

MIB = 2**20
V1 = Path("/sys/fs/cgroup/memory")


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def named(path: Path, line: str) -> str:
    path.write_text(f"9:name=systemd:/\n{line}\n")
    return str(path)


def test_a_part_of_what_the_machine_can_give() -> None:
    available = psutil.virtual_memory().available
    assert 0 < spare_bytes(torch.device("cpu")) <= available / 3


def test_version_two(tmp_path: Path) -> None:
    stat = f"anon {60 * MIB}\ninactive_file {30 * MIB}\nactive_file {10 * MIB}"
    write(tmp_path, max="max", current=900 * MIB, stat=stat)  # the root has no limit
    write(tmp_path / "pod", max=400 * MIB, current=100 * MIB, stat=stat)
    own = named(tmp_path / "own", "0::/pod/app")
    assert room_in_cgroups(str(tmp_path), own) == 340 * MIB, "cached files are given back"
    write(tmp_path / "pod" / "app", max=200 * MIB, current=100 * MIB, stat=stat)
    assert room_in_cgroups(str(tmp_path), own) == 140 * MIB, "the tightest limit counts"


def test_version_one_where_the_own_group_is_the_root(tmp_path: Path) -> None:
    stat = f"inactive_file 1\ntotal_inactive_file {5 * MIB}\ntotal_active_file 0"
    usage = {"limit_in_bytes": 64 * MIB, "usage_in_bytes": 24 * MIB, "stat": stat}
    write(tmp_path / "memory", **usage)
    own = named(tmp_path / "own", "4:memory:/docker/4f1b")
    assert room_in_cgroups(str(tmp_path), own) == 45 * MIB


def test_above_the_limit(tmp_path: Path) -> None:
    write(tmp_path, max=10 * MIB, current=11 * MIB, stat="anon 1")
    assert room_in_cgroups(str(tmp_path), named(tmp_path / "own", "0::/")) == 0


def test_no_limit_and_no_control_groups(tmp_path: Path) -> None:
    assert room_in_cgroups(str(tmp_path), str(tmp_path / "none")) is None
    assert room_in_cgroups(str(tmp_path / "none"), named(tmp_path / "own", "0::/a")) is None
    write(tmp_path, max="max", current=5, stat="anon 1")
    assert room_in_cgroups(str(tmp_path), named(tmp_path / "own", "0::/")) is None


@pytest.mark.slow
@pytest.mark.skipif(
    not (V1.is_dir() and os.access(V1, os.W_OK)), reason="may not make a control group"
)
def test_a_real_one() -> None:
    place = V1 / f"coin-hf-test-{os.getpid()}"
    place.mkdir()
    code = "import torch; from coin_hf.networks.memory import spare_bytes as s; "
    code += "print(s(torch.device('cpu')))"
    try:
        (place / "memory.limit_in_bytes").write_text(str(2048 * MIB))
        done = subprocess.run(
            [sys.executable, "-c", code],
            preexec_fn=lambda: (place / "cgroup.procs").write_text(str(os.getpid())),
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        place.rmdir()
    assert 300 * MIB < int(done.stdout) < 512 * MIB

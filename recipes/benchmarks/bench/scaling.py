"""How time grows: with P and K (exact), with K (probe), and with processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bench.cases import Case
from bench.machine import describe
from bench.measure import START, timed
from bench.ways import ours
from coin_hf.fisher import diagonal_fisher

NETWORK = "resnet50-32"
SAMPLES = (8, 16, 32, 64, 128)
EXACT_CLASSES = (4, 8, 16, 32, 64)
PROBE_CLASSES = (100, 300, 1000, 3000)
SHARED = Case(NETWORK, 10, 128)
"""What several processes share out."""
REPEATS = 3


def measure_scaling() -> dict[str, Any]:
    """Time coin-hf along each axis, on the CPU; the least of three runs each.

    Returns:
        Plain data: curves, processes, machine.
    """
    curves = [
        _curve("P, K = 10, exact", [(p, Case(NETWORK, 10, p)) for p in SAMPLES]),
        _curve("K, P = 16, exact", [(k, Case(NETWORK, k, 16)) for k in EXACT_CLASSES]),
        _curve("K, P = 16, 4 probes", [(k, Case(NETWORK, k, 16)) for k in PROBE_CLASSES]),
    ]
    points = [{"x": world, "seconds": _processes(world)} for world in (1, 2)]
    title = f"processes of one thread, P = {SHARED.samples}, K = {SHARED.classes}, exact"
    return {
        "network": NETWORK,
        "machine": describe("cpu"),
        "curves": curves,
        "processes": {"title": title, "points": points},
    }


def _curve(title: str, cases: list[tuple[int, Case]]) -> dict[str, Any]:
    """Seconds of coin-hf for each case, the least of the rounds; rounds go over all cases."""
    runs = [(case, ours(case.model(), case), case.inputs(case.samples)) for _, case in cases]
    seconds = [[timed(run, inputs, "cpu") for _, run, inputs in runs] for _ in range(REPEATS)]
    best = [min(times) for times in zip(*seconds, strict=True)]
    points = [{"x": x, "seconds": s} for (x, _), s in zip(cases, best, strict=True)]
    return {"title": title, "points": points}


def _processes(world: int) -> float:
    """Seconds of a Fisher shared out among processes that torchrun starts.

    Args:
        world: How many.

    Returns:
        Wall seconds, the least of the rounds.

    Raises:
        RuntimeError: If they fail.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}"]
    command += ["--standalone", "-m", "bench.scaling", str(world)]
    threads = str(torch.get_num_threads())
    settings = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env=settings,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(START)]
    if done.returncode or not lines:
        raise RuntimeError(f"{world} processes ended with code {done.returncode}: {done.stderr}")
    return float(json.loads(lines[0].removeprefix(START)))


def work(world: int) -> None:
    """What each process does: its share, least time of the rounds, told by the first.

    Args:
        world: The number of processes that there should be.

    Raises:
        RuntimeError: If there are more or fewer.
    """
    accelerator = Accelerator()
    if accelerator.num_processes != world:
        raise RuntimeError(f"expected {world} processes, got {accelerator.num_processes}")
    model, inputs = SHARED.model(), SHARED.inputs(SHARED.samples)

    def run(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        accelerator.wait_for_everyone()
        return diagonal_fisher(model, inputs, accelerator=accelerator)

    best = min(timed(run, inputs, "cpu") for _ in range(REPEATS))
    if accelerator.is_main_process:
        print(START + json.dumps(best), flush=True)
    accelerator.end_training()


def draw(entry: dict[str, Any], path: Path) -> None:
    """Draw the curves as a small PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(entry["curves"]), figsize=(9, 2.8), layout="constrained")
    for axis, curve in zip(axes, entry["curves"], strict=True):
        x = [point["x"] for point in curve["points"]]
        y = [point["seconds"] for point in curve["points"]]
        axis.plot(x, y, "o-")
        axis.set(xlabel=curve["title"], ylabel="seconds")
        axis.set(xlim=(0, 1.1 * max(x)), ylim=(0, 1.1 * max(y)))  # no point on the frame
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    work(int(sys.argv[1]))

"""Measure ways: memory and error in a process each, time side by side in one."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case
from bench.machine import installed, peak_bytes
from bench.peers import PEERS
from bench.ways import STOCK, Way, bound, loop

WAYS: dict[str, Way] = {**STOCK, **PEERS}
ON_ALL = ("forward", "bound", "ours")
"""Ways that always run on all samples; any other on a part of them where it is slow."""
COMPARED = 2
"""Samples of the float64 comparison."""
ROUNDING = 1e-20
"""Squares of gradients below this share of the largest one are rounding, not digits."""
START = "bench-result "
"""What a child writes before its result, so that a peer's own prints do no harm."""


def ways_for(case: Case) -> dict[str, Way]:
    """The ways that can do a case and are installed."""
    return {
        key: way
        for key, way in WAYS.items()
        if installed(way.package) and (case.estimator == "exact" or not way.exact_only)
    }


def in_child(key: str, case: Case, *, threads: int, device: str, limit: float) -> dict[str, Any]:
    """Run a way once in a process of its own.

    Args:
        key: Of the way.
        case: What to run it on.
        threads: Of the child.
        device: `cpu` or `cuda`.
        limit: Seconds after which it is stopped.

    Returns:
        `peak_gib`, `sample_seconds`, and for a Fisher `error` and `missing`; or `failure`.
    """
    task = json.dumps({"way": key, "case": asdict(case), "threads": threads, "device": device})
    here = Path(__file__).parent.parent
    command = [sys.executable, "-W", "ignore", "-m", "bench.child", task]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failure": f"stopped after {limit:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(START):
            return json.loads(line.removeprefix(START))
    return {"failure": f"the process ended with code {done.returncode}"}


def child(key: str, case: Case, device: str) -> dict[str, Any]:
    """What the child does: memory first, then the error, whose float64 would count too."""
    way = WAYS[key]
    run = way.prepare(case.model(device), case)
    inputs = case.inputs(case.samples if key in ON_ALL else fewest(way, case), device)
    seconds = timed(run, inputs, device)
    result: dict[str, Any] = {
        "peak_gib": peak_bytes(device) / 2**30,
        "sample_seconds": seconds / len(inputs),
    }
    return {**result, **_error(way, case, device)} if way.fisher else result


def _error(way: Way, case: Case, device: str) -> dict[str, Any]:
    """A way against the loop, both in float64."""
    torch.set_default_dtype(torch.float64)  # some peers make tensors of the default dtype
    inputs = case.inputs(COMPARED, device).double()
    found = way.prepare(case.model(device).double(), case)(inputs)
    expected = loop(case.model(device).double(), case)(inputs)
    return compare(found, expected)


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare two Fishers.

    Args:
        found: By parameter; parameters may be missing.
        expected: The reference, by parameter.

    Returns:
        `error`: the largest difference of an entry relative to the parameter's largest entry, over
        the parameters found; `missing`: how many were not.
    """
    noise = ROUNDING * max(float(value.max()) for value in expected.values())
    worst = 0.0
    for name in expected.keys() & found.keys():
        scale = float(expected[name].max())
        if scale > noise:
            difference = found[name].to(expected[name]) - expected[name]
            worst = max(worst, float(difference.abs().max()) / scale)
    return {"error": worst, "missing": len(expected.keys() - found.keys())}


def timed(run: Any, inputs: Tensor, device: str) -> float:
    """Wall seconds of one run."""
    _synchronize(device)
    start = time.perf_counter()
    run(inputs)
    _synchronize(device)
    return time.perf_counter() - start


def interleaved(
    case: Case,
    sample_seconds: Mapping[str, float],
    *,
    device: str,
    rounds: int,
    budget: float,
) -> dict[str, dict[str, Any]]:
    """Time ways side by side: A B C A B C ..., each on a network of its own.

    Args:
        case: What to run.
        sample_seconds: The ways to time, and about what a sample costs in each.
        device: `cpu` or `cuda`.
        rounds: How often each is timed, after a first run that does not count.
        budget: Seconds a run may take; a slower way runs on fewer samples, but at least on those
            it takes at once, and is scaled to P.

    Returns:
        For each way `samples` run, `seconds` (min and median, scaled to P) and `ratio`, the median
        over rounds of its seconds by the bound's in the same round.
    """
    runs = {key: WAYS[key].prepare(case.model(device), case) for key in sample_seconds}
    counts = {
        key: case.samples
        if key in ON_ALL
        else min(case.samples, max(fewest(WAYS[key], case), int(budget / seconds)))
        for key, seconds in sample_seconds.items()
    }
    inputs = case.inputs(case.samples, device)
    for run in runs.values():
        run(inputs[:1])
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            scale = case.samples / counts[key]
            seconds[key].append(scale * timed(run, inputs[: counts[key]], device))
    return {
        key: {
            "samples": counts[key],
            "seconds": {"min": min(times), "median": statistics.median(times)},
            "ratio": statistics.median(
                one / base for one, base in zip(times, seconds["bound"], strict=True)
            ),
        }
        for key, times in seconds.items()
    }


def fewest(way: Way, case: Case) -> int:
    """Samples that a way takes at once: fewer would be unfair in time, and in memory too."""
    shared = case.spec.chunk if way.large else case.spec.peer_chunk
    return min(case.samples, way.chunk or shared)


def bound_flops(case: Case, device: str) -> int:
    """Floating point operations of the bound over all P samples: what any way has to do."""
    counter = FlopCounterMode(display=False)
    run = bound(case.model(device), case)
    with counter:
        run(case.inputs(1, device))
    return case.samples * counter.get_total_flops()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

"""The Fisher engine against its bound and its peers: time, memory, error.

    python recipes/benchmarks/fisher.py                       # the default cases, under 10 minutes
    python recipes/benchmarks/fisher.py --case vit_base-224 --classes 10 1000 --samples 8
    python recipes/benchmarks/fisher.py --scaling             # time against P, K and processes
    python recipes/benchmarks/fisher.py --device cuda --case resnet50-224 --samples 2000
    python recipes/benchmarks/fisher.py --render              # the page from results/fisher.json

Results are merged into results/fisher.json, and its section of the page is rendered from it.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bench.cases import NETWORKS, Case
from bench.machine import describe, tf32_peak
from bench.measure import bound_flops, in_child, interleaved, ways_for
from bench.peers import PEERS
from bench.scaling import draw, measure_scaling
from bench.tables import PAGE, case_table, fisher_section, put, read, scaling_table, write

HERE = Path(__file__).parent
DEFAULT = (
    Case("resnet50-32", 10, 32),
    Case("vit_tiny-32", 10, 32),
    Case("resnet50-32", 1000, 32),
)


def main() -> None:
    """Measure what was asked for, then write JSON, figure and page."""
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high" if options.device == "cuda" else "highest")
    result = read(options.output)
    if options.scaling:
        result["scaling"] = measure_scaling()
        print(scaling_table(result["scaling"]))
        write(options.output, result)
    elif not options.render:
        for case in chosen(options):
            key, entry = f"{case.key}, {options.device}", measure(case, options)
            result.setdefault("cases", {})[key] = entry
            write(options.output, result)  # a run that is stopped keeps what it has
            print(case_table(key, entry), end="\n\n", flush=True)
    if options.output == HERE / "results" / "fisher.json":
        if "scaling" in result:
            draw(result["scaling"], PAGE.with_name("fisher_scaling.png"))
        put(PAGE, "fisher", fisher_section(result))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=sorted(NETWORKS), help="networks to measure")
    parser.add_argument("--classes", nargs="+", type=int, default=[10], metavar="K")
    parser.add_argument("--samples", nargs="+", type=int, default=[8], metavar="P")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="only these, and the bound")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak-tflops", type=float, help="TF32 peak of a device not known here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds a slow way runs a round")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a way's first run")
    parser.add_argument("--scaling", action="store_true", help="time against P, K, processes (CPU)")
    parser.add_argument("--render", action="store_true", help="measure nothing, render the page")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "fisher.json")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> Sequence[Case]:
    """The cases asked for: the default set, or networks x K x P."""
    if options.case is None:
        return DEFAULT
    return [Case(*each) for each in product(options.case, options.classes, options.samples)]


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case.

    Args:
        case: The network, K and P.
        options: The command line.

    Returns:
        Plain data: what was run, and `ways` by key.
    """
    device = options.device
    keys = [
        key
        for key in ways_for(case)
        if options.ways is None or key in options.ways or key == "bound"
    ]
    ways: dict[str, dict[str, Any]] = {}
    for key in keys:
        print(f"{case.key}: {key}, memory and error", file=sys.stderr, flush=True)
        ways[key] = in_child(key, case, threads=options.threads, device=device, limit=options.limit)
    running = {key: way["sample_seconds"] for key, way in ways.items() if "failure" not in way}
    print(f"{case.key}: {', '.join(running)}, time", file=sys.stderr, flush=True)
    times = interleaved(case, running, device=device, rounds=options.rounds, budget=options.budget)
    cuda = device == "cuda"
    return {
        "device": device,
        "samples": case.samples,
        "estimator": case.estimator
        if case.estimator == "exact"
        else f"{case.cotangents} probes a sample",
        "rounds": options.rounds,
        "bound_flops": bound_flops(case, device),
        "tf32_peak_tflops": tf32_peak(options.peak_tflops) if cuda else None,
        "machine": describe(device, sorted({str(way.package) for way in PEERS.values()})),
        "ways": {key: {**way, **times.get(key, {})} for key, way in ways.items()},
    }


if __name__ == "__main__":
    main()

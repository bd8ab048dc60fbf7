"""What layerwise refitting holds at 224x224, beyond the networks: one case in a process of its own.

    python recipes/benchmarks/layerwise_memory.py [--cases resnet50-224 ...] [--experts 2 8]

P = 200 samples: 160 to fit with four copies of each, 40 held out (`--samples` for fewer). Each
expert is made when its turn comes, as a recipe's are read, and dropped after it. The peak is that
of the whole process, less what it held before with the coded model and one expert loaded: samples
and copies count, networks do not. Random weights and noise: what is measured is memory, and seconds
for orientation.

Goes on where it was stopped; writes `results/layerwise_memory.json` and its part of the page.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench.cases import Case
from bench.machine import describe, peak_bytes, sentence
from bench.tables import PAGE, put, read, table, write
from torch import nn

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "layerwise_memory.json"
SAMPLES, FIT, COPIES = 200, 160, 4
CASES = ("resnet50-224", "vit_base-224")


def main() -> None:
    """Measure the cases that are not there yet, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--memory", type=float, default=2.5, help="GiB, as the recipe's `memory`")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.cases[0], given.experts[0], given.samples, given.memory)))
        return
    found = read(RESULTS) if RESULTS.exists() else {}
    for case in given.cases:
        for experts in given.experts:
            key = f"{case}, N = {experts}, P = {given.samples}"
            if key in found:
                continue
            command = [sys.executable, __file__, "--child", "--cases", case]
            command += ["--experts", str(experts), "--samples", str(given.samples)]
            command += ["--memory", str(given.memory)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[key] = json.loads(done.stdout.splitlines()[-1])
            write(RESULTS, found)
    put(PAGE, "layerwise memory", section(found))


def measure(case: str, experts: int, samples: int, memory: float) -> dict[str, Any]:
    """Refit one coded model and return the peak beyond its networks, in bytes, and seconds.

    Args:
        case: A network of `bench.cases`.
        experts: N.
        samples: P; four fifths are fitted, with copies.
        memory: GiB that layerwise may use.
    """
    from coin_hf.data.augmentation import enlarge
    from coin_hf.encoding.scratch_file import ScratchFile
    from coin_hf.refiners import refit_layers

    here = Case(case, 10, samples)
    coded, single = here.model(), here.model()
    before = _resident()
    del single
    inputs = here.inputs(samples)
    fit, held_out = inputs[: samples * 4 // 5], inputs[samples * 4 // 5 :]
    copies = enlarge(fit, copies=COPIES, transforms=["shift", "mixup"], seed=0)
    fit = torch.cat([fit, *copies])
    began = time.perf_counter()
    refit_layers(
        coded,
        _made(here, coded, experts),
        fit,
        held_out,
        betas=[1 / experts] * experts,
        memory=int(memory * 2**30),
        scratch=ScratchFile,
        progress=True,
    )
    return {
        "inputs": len(fit) + len(held_out),
        "memory": memory,
        "networks": before,
        "peak": peak_bytes("cpu") - before,
        "seconds": time.perf_counter() - began,
        "machine": describe("cpu"),
    }


def _made(case: Case, coded: nn.Module, experts: int) -> Iterator[nn.Module]:
    """Make one expert after the other, each a little apart from the coded model."""
    for seed in range(experts):
        expert = case.model()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in expert.named_parameters():
                start = coded.get_parameter(name)
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(start + 0.01 * start.abs().mean() * noise)
        yield expert


def _resident() -> int:
    """The memory of this process now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise OSError("this system does not tell a process's memory: run it on Linux")


def section(found: dict[str, Any]) -> str:
    """Render the table."""
    rows = [
        [
            key,
            str(each["inputs"]),
            f"{each['memory']:g}",
            f"{each['peak'] / 2**30:.2f}",
            f"{each['seconds']:.0f}",
            str(each["machine"]["threads"]),
        ]
        for key, each in found.items()
    ]
    head = ["network", "inputs", "`memory`, GiB", "peak beyond the networks, GiB", "s", "threads"]
    last = list(found.values())[-1]["machine"]
    return f"{sentence(last)}.\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()

"""What `coin_hf.encode` holds with two and with eight experts: COIN, no steps, one process each.

    python recipes/benchmarks/encode_memory.py [--architectures resnet50 ...] [--experts 2 8]

The peak is of memory that the system cannot take back: a process's own pages, not those of mapped
files, which it drops when memory is short. What holds after importing is told beside it. Sixteen
samples in all, chunks of four, lambda chosen among the paper's six, digits as images of 224 x 224;
experts of random weights, each a little apart from the others: what is measured is memory.

With `--limit MIB` on Linux, as root: every process runs in a memory cgroup of that size, mapped
pages included, and either ends or is killed.

Goes on where it was stopped; writes `results/encode_memory.json` and its part of the page.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from bench.machine import describe, sentence
from bench.tables import PAGE, put, read, table, write

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "encode_memory.json"
ARCHITECTURES = ("resnet50", "vit_base_patch16_224")
SAMPLES, SIZE, CHUNK, TESTED = 16, 224, 4, 8
CGROUP = Path("/sys/fs/cgroup")


def main() -> None:
    """Measure the cases that are not there yet, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--limit", type=int, help="MiB of the memory cgroup to run in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child)))
        return
    found = read(RESULTS) if RESULTS.exists() else {}
    for architecture in given.architectures:
        for experts in given.experts:
            key = f"{architecture}, N = {experts}" + (f", {given.limit} MiB" * bool(given.limit))
            if key in found:
                continue
            with tempfile.TemporaryDirectory() as folder:
                recipe = prepare(Path(folder), architecture, experts)
                command = [sys.executable, __file__, "--child", str(recipe)]
                with limited(given.limit) as enter:
                    done = subprocess.run(
                        command, check=True, stdout=subprocess.PIPE, text=True, preexec_fn=enter
                    )
            found[key] = json.loads(done.stdout.splitlines()[-1])
            write(RESULTS, found)
    put(PAGE, "encode memory", section(found))


def prepare(folder: Path, architecture: str, experts: int) -> Path:
    """Write experts, digits as images, and a recipe.

    Args:
        folder: Where to.
        architecture: timm's name.
        experts: N.

    Returns:
        The recipe.
    """
    import datasets
    import yaml
    from PIL.Image import fromarray
    from sklearn.datasets import load_digits

    from coin_hf import Expert

    digits = load_digits()
    images = [fromarray((16 * each).clip(0, 255).astype("uint8")) for each in digits.images[:200]]
    rows = datasets.Dataset.from_dict(
        {"image": images, "label": digits.target[:200].tolist()},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
        ),
    )
    (folder / "digits").mkdir()
    rows.select(range(100)).to_parquet(folder / "digits" / "train-00000-of-00001.parquet")
    rows.select(range(100, 200)).to_parquet(folder / "digits" / "test-00000-of-00001.parquet")
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for seed in range(experts):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in model.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(start[name] + 0.01 * start[name].abs().mean() * noise)
        Expert.from_module(model, name=f"e{seed}").save_pretrained(folder / f"e{seed}")
    settings = {
        "experts": [{"model": str(folder / f"e{n}"), "dataset": "digits"} for n in range(experts)],
        "datasets": {"digits": {"path": str(folder / "digits")}},
        "samples": {"per_expert": SAMPLES // experts, "seed": 0},
        "fisher": {"estimator": "exact", "batch_size": CHUNK},
        "refine": [],
        "evaluation": {"batch_size": CHUNK, "limit": TESTED},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def measure(recipe: str) -> dict[str, Any]:
    """Encode a recipe and return the peak of this process, in bytes, and seconds."""
    import warnings

    from coin_hf import Recipe, encode

    warnings.filterwarnings("ignore", message=".*at or below chance")
    start, done, peak = held(), threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        ensemble = encode(Recipe.from_yaml(recipe))
    finally:
        done.set()
        watcher.join()
    model = (ensemble.experts or ())[0].model
    return {
        "network": sum(value.nbytes for value in model.parameters()),
        "imported": start,
        "peak": peak,
        "seconds": time.perf_counter() - began,
        "machine": describe("cpu"),
    }


def held() -> int:
    """The bytes of this process that the system cannot take back."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    words = [line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    if not words:
        raise OSError("this system does not tell a process's memory: run it on Linux")
    return sum(1024 * int(each[1]) for each in words)


@contextmanager
def limited(mib: int | None) -> Iterator[Any]:
    """Make a memory cgroup; yield what a child calls to enter it."""
    if mib is None:
        yield None
        return
    first = (CGROUP / "memory").is_dir()  # version 1 has a hierarchy of its own for memory
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    mark = ":memory:" if first else "0::"
    own = next(line.split(mark)[1] for line in lines if mark in line).lstrip("/")
    parent = CGROUP / "memory" / own if first else CGROUP / own
    place = parent / f"encode-memory-{os.getpid()}"
    place.mkdir()
    file = "memory.limit_in_bytes" if first else "memory.max"
    try:
        (place / file).write_text(str(mib * 2**20), encoding="ascii")
        yield lambda: (place / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    finally:
        place.rmdir()


def section(found: dict[str, Any]) -> str:
    """Render the table."""
    rows = [
        [
            key,
            f"{each['network'] / 2**20:.0f}",
            f"{each['imported'] / 2**20:.0f}",
            f"{each['peak'] / 2**20:.0f}",
            f"{each['seconds']:.0f}",
        ]
        for key, each in found.items()
    ]
    head = ["network", "one network, MiB", "after importing, MiB", "peak of `encode`, MiB", "s"]
    last = list(found.values())[-1]["machine"]
    return f"{sentence(last)}.\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()

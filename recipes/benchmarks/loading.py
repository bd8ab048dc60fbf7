"""Loading a coded repository with its experts, beside building and loading the networks by timm.

    coin-hf demo && python recipes/benchmarks/loading.py [coin-hf-demo/coded] [--rounds 7]

Both load the same N + 1 networks from folders, in turn within one process. coin-hf also checks that
the experts are at the revisions that `coin.json` records (their files are hashed, anew in each
round), that every value is finite, and that the networks fit together. Writes
`results/loading.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from bench.machine import describe
from bench.tables import write

from coin_hf import CodedEnsemble
from coin_hf.hub import hashes
from coin_hf.hub.layout import coded_folder

HERE = Path(__file__).parent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("coin-hf-demo/coded"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=HERE / "results" / "loading.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = measure(given.folder, given.rounds)
    seconds = ", ".join(f"{key} {value:.2f} s" for key, value in result["seconds"].items())
    print(f"{seconds}; ratio {result['ratio']:.2f}")
    write(given.output, result)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Time both ways in turn.

    Args:
        folder: A coded repository whose experts are folders of timm networks.
        rounds: How often each is timed.

    Returns:
        Plain data: medians of seconds, and of the ratio within each round.
    """
    ensemble = CodedEnsemble.from_pretrained(folder, experts=True)
    places = [folder / coded_folder(c) for c in range(len(ensemble.coded_models))]
    places += [Path(expert.repo) for expert in ensemble.experts or ()]
    measured = []
    for number in range(rounds + 1):
        hashes._file_hash.cache_clear()
        ways: dict[str, Callable[[], object]] = {
            "coin_hf": lambda: CodedEnsemble.from_pretrained(folder, experts=True),
            "timm": lambda: [
                timm.create_model(f"local-dir:{place.absolute()}", pretrained=True).eval()
                for place in places
            ],
        }
        order = list(ways) if number % 2 else list(ways)[::-1]
        measured.append({key: _timed(ways[key]) for key in order})
    measured = measured[1:]  # a first run does not count
    return {
        "networks": len(places),
        "architecture": ensemble.result.architecture,
        "rounds": rounds,
        "seconds": {
            key: statistics.median(each[key] for each in measured) for key in ("coin_hf", "timm")
        },
        "ratio": statistics.median(each["coin_hf"] / each["timm"] for each in measured),
        "machine": describe("cpu"),
    }


def _timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

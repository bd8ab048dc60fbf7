"""What the router costs: added time beside calling a network in process, and throughput.

    python recipes/benchmarks/router.py

ResNet50 at 64x64 as two experts and a coded model, the backend `local`, one thread a network.
Three ways by turns in each round: the network called for one input; the router asked for one
input; and for throughput a plain loop of batches of 16 beside 256 queries at once to the router,
for one expert. Medians over the rounds. Writes `results/router.json`.
"""

import argparse
import asyncio
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch

from coin_hf.erasure.code import ErasureCode
from coin_hf.networks.logits import call
from coin_hf.repository.atomic import write_whole
from coin_hf.repository.provenance import environment
from coin_hf.serve.decoder import Decoder
from coin_hf.serve.local import LocalNetwork
from coin_hf.serve.question import Question
from coin_hf.serve.router import Router

RESULTS = Path(__file__).parent / "results" / "router.json"
BATCH, QUERIES = 16, 256


async def measure(rounds: int, architecture: str, size: int) -> dict[str, Any]:
    """Time all ways by turns."""
    torch.manual_seed(0)
    models = [timm.create_model(architecture, num_classes=10).eval() for _ in range(3)]
    networks = [LocalNetwork(f"n{i}", model, most=BATCH) for i, model in enumerate(models)]
    decoder = Decoder(ErasureCode([0.5, 0.5]), (None, None))
    router = Router(networks[:2], networks[2:], decoder)
    x = torch.randn(3, size, size)
    batch, question = x[None], Question(b"", x)
    many = torch.stack([x] * BATCH)
    alone, routed, loops, served = [], [], [], []
    for _ in range(rounds):
        for _ in range(5):
            began = time.perf_counter()
            with torch.inference_mode():
                call(models[0], batch)
            alone.append(time.perf_counter() - began)
            began = time.perf_counter()
            await router.ask(0, question, decoded="refuse")
            routed.append(time.perf_counter() - began)
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(QUERIES // BATCH):
                call(models[0], many)
        loops.append(QUERIES / (time.perf_counter() - began))
        began = time.perf_counter()
        asked = (router.ask(0, question, decoded="refuse") for _ in range(QUERIES))
        await asyncio.gather(*asked)
        served.append(QUERIES / (time.perf_counter() - began))
        print(f"{1e3 * (routed[-1] - alone[-1]):.2f} ms, {served[-1] / loops[-1]:.2f}", flush=True)
    await router.close()
    return {
        "architecture": architecture,
        "size": size,
        "alone_ms": 1e3 * statistics.median(alone),
        "added_ms": 1e3 * statistics.median(b - a for a, b in zip(alone, routed, strict=True)),
        "throughput": statistics.median(b / a for a, b in zip(loops, served, strict=True)),
        "rounds": rounds,
        "machine": platform.processor() or platform.machine(),
        "versions": environment(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = asyncio.run(measure(given.rounds, given.architecture, given.size))
    print(f"router adds {found['added_ms']:.2f} ms; throughput {found['throughput']:.2f} x")
    write_whole(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

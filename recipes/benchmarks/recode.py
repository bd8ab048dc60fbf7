"""Re-coding two experts of 1 GiB each: memory and time, beside a plain copy and mergekit.

    python recipes/benchmarks/recode.py [--mergekit PATH/mergekit-pytorch] [--folder FOLDER]

Each way runs in a process of its own, in turn (A B C A B C ...), on the same files. It takes about
8 GiB of disk and a few minutes, and writes `results/recode.json` and the tables of `recode.md`.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench.machine import describe, sentence
from safetensors.torch import save_file

from coin_hf.hub.hashes import folder_revision
from coin_hf.hub.layout import COIN_FILE, RESULT_FILE
from coin_hf.records.coin import FORMAT, CoinRecord
from coin_hf.repository.fisher_files import fisher_path, write_fisher
from coin_hf.repository.fisher_origin import draws_of, fisher_metadata

HERE = Path(__file__).parent
RESULT = HERE / "results" / "recode.json"
PAGE = HERE.parents[1] / "docs" / "pages" / "benchmarks" / "recode.md"
WIDTH = 2048
"""Each expert: 64 matrices of this width, 16 MiB each, and their biases; 1 GiB in float32."""
ROUNDS = 5
NAMES = ("one", "two")

WATCHED = """
import json, re, sys, threading, time
from pathlib import Path

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

peak = {"RssAnon": 0, "VmHWM": 0}
def watch():
    while True:
        peak["RssAnon"] = max(peak["RssAnon"], resident("RssAnon"))
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
import coin_hf.recoding.recode
from coin_hf.recoding.recode import recode
imported = resident("RssAnon")
start = time.perf_counter()
WORK
seconds = time.perf_counter() - start
peak["RssAnon"] = max(peak["RssAnon"], resident("RssAnon"))
peak["VmHWM"] = resident("VmHWM")
print(json.dumps({"seconds": seconds, "imported": imported, **peak}))
"""

RECODE = "recode(sys.argv[1] + '/coded', sys.argv[2], betas=[0.7, 0.3], lam=1e-3)"
COPY = """
def blocks(file, size=1 << 22):
    with open(file, "rb", buffering=0) as stream:
        while block := stream.read(size):
            yield block

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
fishers = sorted((folder / "coded" / "fisher").iterdir())
for file in fishers:  # read, and written as they are
    with open(out / file.name, "wb", buffering=0) as stream:
        for block in blocks(file):
            stream.write(block)
for block in blocks(folder / "two" / "model.safetensors"):  # read alone
    pass
with open(out / "model.safetensors", "wb", buffering=0) as stream:
    for block in blocks(folder / "one" / "model.safetensors"):
        stream.write(block)
"""
MERGE = """
merge_method: linear
dtype: float32
models:
  - {model: FOLDER/one/model.safetensors, parameters: {weight: 0.5}}
  - {model: FOLDER/two/model.safetensors, parameters: {weight: 0.5}}
"""


def make(folder: Path, layers: int) -> None:
    """Write two experts, their Fishers and a coded repository, of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def values(positive: bool) -> dict[str, torch.Tensor]:
        made = {}
        for layer in range(layers):
            for name, shape in (("weight", (WIDTH, WIDTH)), ("bias", (WIDTH,))):
                value = torch.randn(shape, generator=generator)
                made[f"layers.{layer}.{name}"] = value.square_() if positive else value
        return made

    data = folder / "data"
    data.mkdir()
    (data / "rows.txt").write_text("no rows are read\n")
    revisions = {}
    for name in NAMES:
        (folder / name).mkdir()
        weights = folder / name / "model.safetensors"
        save_file(values(False), weights, metadata={"format": "pt"})
        config = {"architecture": "synthetic", "num_classes": 2}
        (folder / name / "config.json").write_text(json.dumps(config))
        revisions[name] = folder_revision(folder / name)
    coded = folder / "coded"
    coded.mkdir()
    shutil.copy(folder / "one" / "config.json", coded)
    shutil.copy(folder / "one" / "model.safetensors", coded)
    coin = _coin(folder, revisions)
    record = CoinRecord.of(coin)
    for name in NAMES:
        metadata = fisher_metadata(
            model=name,
            revision=revisions[name],
            draws=draws_of(record),
            versions={},
            estimator=record.fisher,
            tied={},
        )
        write_fisher(coded / fisher_path(name), values(True), metadata)
    (coded / COIN_FILE).write_text(json.dumps(coin))
    shared = {key: value for key, value in coin.items() if key != "versions"}
    drawn = {key: value for key, value in coin["samples"].items() if key != "rows"}
    result = {
        **shared,
        "choice": None,
        "num_classes": 2,
        "architecture": "synthetic",
        "experts": [{**entry, "license": None} for entry in coin["experts"]],
        "samples": {**drawn, "count": 2},
        "erasures": [],
        "mean_nda": {},
        "run": {"device": "cpu", "processes": 1, "seconds": {}, "versions": {}},
    }
    (coded / RESULT_FILE).write_text(json.dumps(result))


def _coin(folder: Path, revisions: dict[str, str]) -> dict[str, Any]:
    data = {"path": "../data", "revision": folder_revision(folder / "data"), "split": "train"}
    return {
        "format": FORMAT,
        "library": "timm",
        "coder": "coin",
        "betas": [0.5, 0.5],
        "lam": 0.01,
        "experts": [
            {
                "model": f"../{name}",
                "revision": revisions[name],
                "name": name,
                "dataset": name,
                "library": "timm",
            }
            for name in NAMES
        ],
        "datasets": dict.fromkeys(NAMES, data),
        "samples": {
            "per_expert": 1,
            "seed": 0,
            "held_out": 0.0,
            "rows": {name: [0] for name in NAMES},
        },
        "fisher": {"estimator": "exact", "probes": 4, "save": True},
        "evaluation": {"split": "test", "batch_size": 1},
        "versions": {},
    }


def watched(work: str, folder: Path, out: Path) -> dict[str, float]:
    """Run Python code in a process of its own; return its seconds and peaks."""
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED.replace("WORK", work), str(folder), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    shutil.rmtree(out)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def merged(command: str, folder: Path, out: Path) -> dict[str, float]:
    """Run mergekit's linear merge; return its seconds and peaks, its start included."""
    recipe = folder / "merge.yaml"
    recipe.write_text(MERGE.replace("FOLDER", str(folder)))
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen(
        [command, str(recipe), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    anonymous = resident = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            text = status.read_text()
        except OSError:
            break
        for line, kind in re.findall(r"((RssAnon|VmHWM):\s+\d+)", text):
            size = int(line.split()[1]) * 1024
            if kind == "RssAnon":
                anonymous = max(anonymous, size)
            else:
                resident = max(resident, size)
        time.sleep(0.002)
    output = process.communicate()[0].decode()
    if process.returncode:
        raise RuntimeError(output)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return {"seconds": seconds, "RssAnon": anonymous, "VmHWM": resident}


def timed_whole(work: str, folder: Path, out: Path) -> dict[str, float]:
    """As `watched`, but the process's start counts too, as it does for mergekit."""
    start = time.perf_counter()
    found = watched(work, folder, out)
    return {**found, "whole": time.perf_counter() - start}


def measure(folder: Path, command: str | None) -> dict[str, Any]:
    """Measure every way `ROUNDS` times, in turn."""
    runs: dict[str, list[dict[str, float]]] = {"copy": [], "recode": [], "mergekit": []}
    for number in range(ROUNDS + 1):
        found = {
            "copy": timed_whole(COPY, folder, folder / "out"),
            "recode": timed_whole(RECODE, folder, folder / "out"),
        }
        if command is not None:
            found["mergekit"] = merged(command, folder, folder / "out")
        print(number, {way: round(one["seconds"], 2) for way, one in found.items()}, flush=True)
        if number:  # the first round fills the page cache
            for way, one in found.items():
                runs[way].append(one)
    expert = (folder / "one" / "model.safetensors").stat().st_size
    return {"expert_bytes": expert, "largest_tensor_bytes": 4 * WIDTH * WIDTH, "runs": runs}


def summary(result: dict[str, Any]) -> str:
    """Render the table of `recode.md` from the result."""
    runs = {way: found for way, found in result["runs"].items() if found}

    def median(way: str, key: str) -> float:
        return statistics.median(one[key] for one in runs[way])

    ratios = [
        one["seconds"] / base["seconds"]
        for one, base in zip(runs["recode"], runs["copy"], strict=True)
    ]
    mib = 1 << 20
    bound = result["expert_bytes"] / 4
    own = max(one["RssAnon"] - one["imported"] for one in runs["recode"])
    anonymous = max(one["RssAnon"] for one in runs["recode"])
    lines = [
        f"Two experts of {result['expert_bytes'] / mib:.0f} MiB each, {ROUNDS} rounds, medians; "
        f"{sentence(result['machine'])}.",
        "",
        "| way | seconds | with its start | x plain copy | peak anonymous memory |",
        "|---|---:|---:|---:|---:|",
        f"| plain copy of the same bytes | {median('copy', 'seconds'):.2f} | | 1.00 | |",
        f"| `coin-hf recode` | {median('recode', 'seconds'):.2f} | {median('recode', 'whole'):.2f} "
        f"| {statistics.median(ratios):.2f} | {anonymous / mib:.0f} MiB |",
    ]
    if "mergekit" in runs:
        lines.append(
            f"| mergekit {result['mergekit']}, linear | | {median('mergekit', 'seconds'):.2f} "
            f"| | {max(one['RssAnon'] for one in runs['mergekit']) / mib:.0f} MiB |"
        )
    lines += [
        "",
        f"Of the peak of `recode`, {(anonymous - own) / mib:.0f} MiB are Python and torch before "
        f"it begins and **{own / mib:.0f} MiB its own**; the bound is a quarter of one expert, "
        f"{bound / mib:.0f} MiB, and the largest tensor's working set "
        f"({result['largest_tensor_bytes'] / mib:.0f} MiB a tensor).",
    ]
    if "mergekit" in runs:
        whole = [
            one["whole"] / other["seconds"]
            for one, other in zip(runs["recode"], runs["mergekit"], strict=True)
        ]
        memory = anonymous / max(one["RssAnon"] for one in runs["mergekit"])
        lines += [
            "",
            f"Against mergekit, both with their start: {statistics.median(whole):.2f} of its time "
            f"and {memory:.2f} of its peak memory. mergekit reads two models and writes one; "
            "`recode` also reads and writes a Fisher for each expert, and checks the experts' "
            "hashes.",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, render the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--mergekit", help="path of the command mergekit-pytorch")
    parser.add_argument("--layers", type=int, default=64, help="matrices of 16 MiB in an expert")
    parser.add_argument("--render", action="store_true", help="only render the page again")
    given = parser.parse_args(arguments)
    if not given.render:
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            make(Path(place), given.layers)
            result = measure(Path(place), given.mergekit)
        version = None
        if given.mergekit:
            python = Path(given.mergekit).with_name("python")
            ask = "import importlib.metadata as m; print(m.version('mergekit'))"
            version = subprocess.run(
                [python, "-c", ask], capture_output=True, text=True, check=True
            ).stdout.strip()
        result |= {
            "machine": describe("cpu", ["safetensors"]),
            "mergekit": version,
        }
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    begin, end = "<!-- recode: begin -->", "<!-- recode: end -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    tail = rest.partition(end)[2]
    PAGE.write_text(f"{head}{begin}\n{summary(result)}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

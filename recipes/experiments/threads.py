"""What the number of threads changes in a result: the demo's recipe on one, two and four threads.

    coin-hf demo && python recipes/experiments/threads.py [--threads 1 2 4]

Run where `coin-hf-demo` lies. Sums of many products depend on how they are split among threads, in
their last digits; what follows from them (lambda, steps kept) could then differ too. Each number of
threads is a process of its own, beside a second one of the first number: a repeated run.

Writes `results/threads.json` beside this file and the table of `threads.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from coin_hf.records.result import ResultRecord
from coin_hf.repository.atomic import write_whole

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "threads.json"
PAGE = HERE.parents[1] / "docs" / "pages" / "experiments" / "threads.md"
RECIPE = HERE.parent / "demo.yaml"


def measure(threads: list[int]) -> dict[str, Any]:
    """Encode once for each number of threads, and once more with the first; compare with it."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        first = Path(place) / "0"
        for number, count in enumerate([threads[0], *threads]):
            folder = Path(place) / str(number)
            command = [sys.executable, "-m", "coin_hf", "encode", str(RECIPE)]
            env = {**os.environ, "OMP_NUM_THREADS": str(count)}
            subprocess.run([*command, "-o", f"output={folder}"], check=True, env=env)
            key = f"{count}, again" if number == 1 else str(count)
            found[key] = _compared(folder, first)
            print(key, found[key], flush=True)
        found["versions"] = _result(first).run.versions
    return found


def _result(folder: Path) -> ResultRecord:
    return ResultRecord.of(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def _compared(folder: Path, first: Path) -> dict[str, Any]:
    """Tell a run's scores, and how far its parameters are from the first run's."""
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, first))
    kinds = [name for name, value in ours.items() if value.is_floating_point()]
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in kinds)
    norm = sum(float(theirs[name].double().square().sum()) for name in kinds)
    result = _result(folder)
    own = [erasure.scores[result.coder] for erasure in result.singles]
    return {
        "parameters": (apart / norm) ** 0.5,
        "lam": result.lam,
        "kept": [step.kept for step in result.refinements or ()],
        "nda": [score.nda for score in own],
        "agreement": [score.agreement for score in own],
        "coding_loss": [score.coding_loss for score in own],
    }


def table(found: dict[str, Any]) -> str:
    """Render the table."""
    lines = [
        "| threads | ‖θ − θ₁‖ / ‖θ₁‖ | λ | NDA | agreement (%) | coding loss |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    for key, each in found.items():
        if key == "versions":
            continue
        nda, agreed = (
            ", ".join(f"{scale * value:.2f}" for value in each[name])
            for name, scale in (("nda", 1), ("agreement", 100))
        )
        loss = ", ".join(f"{value:.5f}" for value in each["coding_loss"])
        lines.append(
            f"| {key} | {each['parameters']:.1e} | {each['lam']:g} | {nda} | {agreed} | {loss} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, write, render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    if not given.render:
        write_whole(RESULTS, json.dumps(measure(given.threads), indent=1) + "\n")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    begin, end = "<!-- threads: begin -->", "<!-- threads: end -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    write_whole(PAGE, f"{head}{begin}\n{table(found)}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()

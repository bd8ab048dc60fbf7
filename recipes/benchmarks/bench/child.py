"""One way in a process of its own: `python -m bench.child TASK`, see `measure.in_child`."""

import json
import sys
import textwrap

import torch

from bench.cases import Case
from bench.measure import START, child


def main() -> None:
    """Run the task given as JSON and print its result."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.set_float32_matmul_precision("high" if task["device"] == "cuda" else "highest")
    try:
        result = child(task["way"], Case(**task["case"]), task["device"])
    except Exception as error:  # a peer's failure is a result
        first = textwrap.shorten((str(error).splitlines() or [""])[0], 160)
        result = {"failure": f"{type(error).__name__}: {first}"}
    print(START + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

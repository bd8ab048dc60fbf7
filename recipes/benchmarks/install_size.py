"""The size of virtual environments into which coin-hf was installed.

    python -m venv cuda && cuda/bin/pip install ".[demo]"
    python -m venv cpu && cpu/bin/pip install ".[demo]" \
        --extra-index-url https://download.pytorch.org/whl/cpu
    python recipes/benchmarks/install_size.py cuda cpu

A size is that of all files, in decimal gigabytes. Writes `results/install_size.json`. In the
committed one, the CPU build of torch was installed from a file (`torch==2.13.0+cpu`), and
torchvision, 0.025 GB, from PyPI.
"""

import argparse
import json
import platform
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMED = ("coin-hf", "timm", "torch", "torchvision")
"""The packages whose versions are recorded."""
LARGEST = 5
"""Folders of packages whose sizes are recorded."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("environments", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "install_size.json")
    given = parser.parse_args()
    environments = {path.name: measure(path) for path in given.environments}
    result = {
        "system": platform.system(),
        "machine": platform.machine(),
        "environments": environments,
    }
    for name, entry in environments.items():
        print(f"{name}: {entry['gigabytes']:.2f} GB, torch {entry['versions']['torch']}")
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(environment: Path) -> dict[str, Any]:
    """Measure one environment.

    Args:
        environment: The folder that `python -m venv` made.

    Returns:
        Plain data: the size, the largest packages' sizes, and versions.

    Raises:
        SystemExit: If coin-hf is not installed there.
    """
    packages = next(environment.glob("lib/python*/site-packages"), None)
    if packages is None:
        raise SystemExit(f"{environment} is no virtual environment")
    found = {each.name.lower(): each.version for each in distributions(path=[str(packages)])}
    if "coin-hf" not in found:
        raise SystemExit(f"{environment} holds no coin-hf: pip install it there first")
    sizes = {path.name: gigabytes(path) for path in packages.iterdir() if path.is_dir()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
    return {
        "gigabytes": gigabytes(environment),
        "largest": {name: sizes[name] for name in largest},
        "python": packages.parent.name.removeprefix("python"),
        "versions": {name: found[name] for name in NAMED if name in found},
    }


def gigabytes(folder: Path) -> float:
    """Sum the sizes of a folder's files.

    Args:
        folder: The folder.

    Returns:
        Decimal gigabytes, without what links point to, to the megabyte.
    """
    files = (path.lstat() for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
    return round(sum(file.st_size for file in files) / 1e9, 3)


if __name__ == "__main__":
    main()

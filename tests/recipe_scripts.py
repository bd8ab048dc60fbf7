"""Run a recipe's script in this process."""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def script(path: Path) -> Iterator[dict[str, Any]]:
    """The names of a script beside which its modules lie."""
    sys.path.insert(0, str(path.parent))
    try:
        yield runpy.run_path(str(path))
    finally:
        sys.path.remove(str(path.parent))

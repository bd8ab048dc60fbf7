"""Draw a figure to a PNG or SVG file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coin_hf.errors import InputError

KINDS = (".png", ".svg")


def check_figure(path: Path | None) -> None:
    """Refuse a file that is no figure, before anything is measured.

    Args:
        path: The file, if one is asked for.

    Raises:
        InputError: If its name ends otherwise than a figure's.
    """
    if path is not None and path.suffix not in KINDS:
        raise InputError(f"{path} is no figure: give a file that ends in {' or '.join(KINDS)}")


def draw_to(path: Path, draw: Callable[[Any], None], *, height: float = 3.7) -> None:
    """Draw axes, and save them.

    Args:
        path: The file.
        draw: Draws on matplotlib's axes.
        height: Inches; the width is 6.2.

    Raises:
        InputError: If it is another kind of file, or cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_figure(path)
    canvas = Figure(figsize=(6.2, height), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    draw(axes)
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    try:
        canvas.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}; choose another place") from error

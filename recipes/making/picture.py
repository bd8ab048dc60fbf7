"""Draw the picture of README and docs: two experts, one of them missing, its answer still coming.

python recipes/making/picture.py
"""

from pathlib import Path

from coin_hf.reports.erasure_drawing import Theme, erasure_drawing
from coin_hf.repository.atomic import write_whole

ASSETS = Path(__file__).parents[2] / "docs" / "pages" / "assets"
THEMES: tuple[Theme, ...] = ("light", "dark")


def draw(folder: Path = ASSETS) -> None:
    """Write `erasure-light.svg` and `erasure-dark.svg`.

    Args:
        folder: Where to.
    """
    for theme in THEMES:
        drawn = erasure_drawing([0.5, 0.5], ["low", "high"], ["high"], theme=theme)
        write_whole(folder / f"erasure-{theme}.svg", drawn)


if __name__ == "__main__":
    draw()

"""Write SVG by hand: shapes, names and formulas, in colours that a style sheet may replace."""

import html
import math
import unicodedata

from coin_hf.reports.safe_text import printable

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2937",
    "faint": "#5b6472",
    "expert": "#e8eef7",
    "coded": "#fdf0d5",
    "gone": "#f3f4f6",
    "line": "#64748b",
    "lost": "#b91c1c",
    "found": "#15803d",
}
"""Colours by what they show; text has a contrast of at least 4.5 to what is behind it."""
DARK = {
    "paper": "#111827",
    "ink": "#f3f4f6",
    "faint": "#a3adbb",
    "expert": "#24344d",
    "coded": "#4a3a17",
    "gone": "#1f2937",
    "line": "#94a3b8",
    "lost": "#f87171",
    "found": "#4ade80",
}
EM = 6.9
"""Widest usual width of a letter at the size of names, in pixels."""
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"


def dark_rules(scope: str = "") -> str:
    """Write the style sheet that makes drawings of the theme `auto` dark.

    Args:
        scope: The selector below which they are, such as `.dark` for a page that has a switch of
            its own; by default wherever the reader's system is dark.

    Returns:
        CSS.
    """
    rules = "".join(
        f"{scope} .erasure .fill-{name}{{fill:{color}}}"
        f"{scope} .erasure .stroke-{name}{{stroke:{color}}}"
        for name, color in DARK.items()
    )
    return rules if scope else f"@media (prefers-color-scheme:dark){{{rules}}}"


class Canvas:
    """The shapes of one drawing; coordinates in pixels from the upper left, text at 13 pixels."""

    def __init__(self, width: int, height: int, colors: dict[str, str]) -> None:
        """Start with a background.

        Args:
            width: In pixels.
            height: In pixels.
            colors: LIGHT or DARK.
        """
        self.width, self.height, self.colors = width, height, colors
        self._parts: list[str] = []
        self.rectangle(0, 0, width, height, "paper", None, radius=8)

    def svg(self, title: str, description: str, style: str) -> str:
        """Return the document.

        Args:
            title: What it shows, in a few words.
            description: All that it shows.
            style: A style sheet within it, or nothing.

        Returns:
            SVG.
        """
        sheet = f"<style>{style}</style>" if style else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="erasure" role="img" '
            f'width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-size="13" font-family="{FONT}">'
            f"<title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
            f"{sheet}{''.join(self._parts)}</svg>"
        )

    def _paint(self, fill: str | None, stroke: str | None = None) -> str:
        """Return the attributes of a colour: a style sheet may replace it by its class."""
        classes = [f"fill-{fill}"] * (fill is not None) + [f"stroke-{stroke}"] * bool(stroke)
        painted = f'class="{" ".join(classes)}" fill="{self.colors[fill] if fill else "none"}"'
        return f'{painted} stroke="{self.colors[stroke]}"' if stroke else painted

    def circle(self, x: float, y: float, radius: float, fill: str, stroke: str) -> None:
        """Draw a circle.

        Args:
            x: Of its centre.
            y: Of its centre.
            radius: In pixels.
            fill: Name of its colour.
            stroke: Name of its edge's colour.
        """
        self._parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" {self._paint(fill, stroke)}/>'
        )

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        stroke: str | None,
        radius: int = 6,
    ) -> None:
        """Draw a rectangle with round corners.

        Args:
            x: Left edge.
            y: Upper edge.
            width: In pixels.
            height: In pixels.
            fill: Name of its colour.
            stroke: Name of its edge's colour; None for no edge.
            radius: Of the corners.
        """
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f"{self._paint(fill, stroke)}/>"
        )

    def stroke(
        self, x: float, y: float, to_x: float, to_y: float, color: str, width: float, dash: str = ""
    ) -> None:
        """Draw a line.

        Args:
            x: Of its start.
            y: Of its start.
            to_x: Of its end.
            to_y: Of its end.
            color: Name of its colour.
            width: In pixels.
            dash: Lengths of dashes and gaps; by default it has no gaps.
        """
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" '
            f'{self._paint(None, color)} stroke-width="{width:g}"{dashes}/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float, color: str) -> None:
        """Draw a line that ends in an arrowhead.

        Args:
            x: Of its start.
            y: Of its start.
            to_x: Of its end.
            to_y: Of its end.
            color: Name of its colour.
        """
        length = math.hypot(to_x - x, to_y - y)
        ux, uy = (to_x - x) / length, (to_y - y) / length
        back_x, back_y = to_x - 7 * ux, to_y - 7 * uy
        self.stroke(x, y, back_x, back_y, color, 1.5)
        corners = [(to_x, to_y)] + [(back_x - s * 3.5 * uy, back_y + s * 3.5 * ux) for s in (1, -1)]
        points = " ".join(f"{a:.2f},{b:.2f}" for a, b in corners)
        self._parts.append(f'<polygon points="{points}" {self._paint(color)}/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: str,
        *,
        anchor: str = "start",
        italic: bool = False,
        upwards: bool = False,
        edge: str | None = None,
    ) -> None:
        """Write one line.

        Args:
            x: Of its start, middle or end.
            y: Of its foot.
            text: Any text.
            color: Name of its colour.
            anchor: `start`, `middle` or `end`: which point of it lies at x.
            italic: Slant it.
            upwards: Turn it by a quarter to the left.
            edge: Name of a colour around the letters, over a line that crosses them.
        """
        look = ' font-style="italic"' if italic else ""
        look += f' transform="rotate(-90 {x:g} {y:g})"' if upwards else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{look} '
            f"{self._paint(color, edge)}{_edge(edge)}>{html.escape(printable(text))}</text>"
        )

    def formula(
        self,
        x: float,
        y: float,
        formula: str,
        color: str,
        *,
        anchor: str = "start",
        edge: str | None = None,
    ) -> None:
        """Write a formula.

        Args:
            x: Of its start or end.
            y: Of its foot.
            formula: Words between spaces; what follows an underscore in one is its index.
            color: Name of its colour.
            anchor: `start` or `end`: which point of it lies at x.
            edge: Name of a colour around the letters.
        """
        spans = []
        for word in formula.split(" "):
            name, _, index = word.partition("_")
            comma = "," if index.endswith(",") else ""
            index = index.removesuffix(",")
            spans.append(
                f'<tspan font-style="italic">{name}</tspan><tspan dy="3" font-size="10">{index}'
                f'</tspan><tspan dy="-3">{comma} </tspan>'
                if index
                else f"<tspan>{name} </tspan>"
            )
        written = "".join(spans).removesuffix(" </tspan>") + "</tspan>"
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" '
            f"{self._paint(color, edge)}{_edge(edge)}>{written}</text>"
        )


def _edge(color: str | None) -> str:
    """Return what lets letters stand before a line that crosses them."""
    return "" if color is None else ' stroke-width="5" stroke-linejoin="round" paint-order="stroke"'


def short(name: str, pixels: float) -> str:
    """Cut a name to a width, by the usual widths of letters.

    Args:
        name: Any text.
        pixels: The width.

    Returns:
        The name, or its start and an ellipsis.
    """
    name = printable(name)
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name]
    room = int(pixels / EM)
    if sum(widths) <= room:
        return name
    kept, used = "", 1
    for letter, width in zip(name, widths, strict=True):
        if used + width > room:
            break
        kept, used = kept + letter, used + width
    return f"{kept}…"

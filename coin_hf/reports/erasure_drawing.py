"""Draw an erasure: the networks as boxes, the missing ones crossed out, and how each is answered.

The drawing is SVG text: the same bytes for the same arguments, no font and no script from outside.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

from coin_hf.erasure.alone import closest_coded
from coin_hf.erasure.answers import indices
from coin_hf.erasure.betas import Betas, Rows, rows_of
from coin_hf.erasure.label_sets import LabelSets, missing_together
from coin_hf.reports.safe_text import printable
from coin_hf.reports.svg import DARK, LIGHT, Canvas, dark_rules, short

Theme = Literal["light", "dark", "auto"]

WIDTH = 600
BOXES, BOX = 62, 176
"""Left edge and width of the networks' boxes."""
DECODER, BAR = 288, 26
"""Left edge and width of the decoder."""
ANSWERS = 350
"""Left edge of what is said of the answers."""
INPUT, RADIUS = 24, 15
"""Centre and radius of the input's circle."""
FOOT = 4.5
"""From the middle of a line of text down to its foot."""
SEVERAL = 3
"""Terms that a formula writes out; more are a sum."""
CROWDED = 8
"""Networks from which on rows are lower."""


def erasure_drawing(
    betas: Betas,
    names: Sequence[str],
    missing: Collection[int | str] = (),
    *,
    labels: LabelSets | None = None,
    theme: Theme = "auto",
) -> str:
    """Draw how each expert is answered for where some are missing.

    Args:
        betas: Coding weights, shape (N,) or (M, N).
        names: The experts' names, N of them.
        missing: The missing experts, by name or index.
        labels: The logits that each expert has; None if all have all.
        theme: `light` or `dark`; `auto` is light, and dark where the reader's system is.

    Returns:
        An SVG document with an opaque background, WIDTH pixels wide, which may also stand within
        HTML. Its title and description say in words what it shows.

    Raises:
        ValueError: If the names are not N, or a name or index is unknown.
    """
    rows = rows_of(betas)
    if len(names) != len(rows[0]):
        raise ValueError(f"expected the names of {len(rows[0])} experts, got {len(names)}")
    lost = indices("expert", missing, len(names), names)
    drawing = _Drawing(rows, names, lost, labels, DARK if theme == "dark" else LIGHT)
    return drawing.svg(dark_rules() if theme == "auto" else "")


class _Drawing:
    """One drawing: from top to bottom the experts, then the coded models."""

    def __init__(
        self,
        betas: Rows,
        names: Sequence[str],
        lost: Sequence[int],
        labels: LabelSets | None,
        colors: dict[str, str],
    ) -> None:
        self.betas, self.names, self.num_coded = betas, names, len(betas)
        self.lost, self.labels = lost, labels
        together = missing_together(labels, len(names), lost, self.num_coded)
        self.undecodable = {i for group in together for i in group}
        networks = len(names) + self.num_coded
        self.pitch = 38 if networks > CROWDED else 54
        self.box = self.pitch - 10
        self.top = 14
        self.canvas = Canvas(WIDTH, self.top * 2 + networks * self.pitch - 10, colors)

    def svg(self, style: str) -> str:
        """Draw all and return the document."""
        experts, networks = len(self.names), len(self.names) + self.num_coded
        middle = (self._middle(0) + self._middle(networks - 1)) / 2
        self.canvas.circle(INPUT, middle, RADIUS, "paper", "line")
        self.canvas.text(INPUT, middle + FOOT, "x", "ink", anchor="middle", italic=True)
        for i, name in enumerate(self.names):
            self._expert(i, name, middle)
        for c in range(self.num_coded):
            self._coded(c, middle)
        self._decoder(networks if self.lost else experts)
        for i in range(experts):
            self._answer(i)
        return self.canvas.svg(self._title(), self._description(), style)

    def _title(self) -> str:
        if not self.lost:
            return "No expert is missing"
        return f"Missing: {', '.join(printable(self.names[i]) for i in self.lost)}"

    def _description(self) -> str:
        said = []
        for i, name in enumerate(self.names):
            if i not in self.lost:
                way = "its own answer"
            elif i in self.undecodable:
                way = "missing; a coded model answers alone"
            else:
                way = "missing; its answer is decoded from a coded model's and the other experts'"
            said.append(f"{printable(name)}: {way}.")
        return " ".join(said)

    def _middle(self, row: int) -> float:
        return self.top + row * self.pitch + self.box / 2

    def _expert(self, i: int, name: str, middle: float) -> None:
        y, gone = self._middle(i), i in self.lost
        self._feed(middle, y, "faint" if gone else "line", dashed=gone)
        self.canvas.rectangle(
            BOXES,
            y - self.box / 2,
            BOX,
            self.box,
            "gone" if gone else "expert",
            "faint" if gone else "line",
        )
        if gone:
            half = self.box / 2
            for sign in (-1, 1):
                self.canvas.stroke(BOXES, y - sign * half, BOXES + BOX, y + sign * half, "lost", 2)
        else:
            self.canvas.arrow(BOXES + BOX, y, DECODER, y, "line")
        edge = "gone" if gone else None
        self.canvas.text(BOXES + 10, y + FOOT, short(name, BOX - 44), "ink", edge=edge)
        self.canvas.formula(
            BOXES + BOX - 10, y + FOOT, f"f_{i + 1}", "ink", anchor="end", edge=edge
        )

    def _coded(self, c: int, middle: float) -> None:
        y, asked = self._middle(len(self.names) + c), bool(self.lost)
        color = "line" if asked else "faint"
        self._feed(middle, y, color, dashed=not asked)
        self.canvas.rectangle(BOXES, y - self.box / 2, BOX, self.box, "coded", color)
        name = "coded model" if self.num_coded == 1 else f"coded model {c + 1}"
        self.canvas.text(BOXES + 10, y + FOOT, name, "ink" if asked else "faint")
        symbol = self._symbol(c)
        self.canvas.formula(
            BOXES + BOX - 10, y + FOOT, symbol, "ink" if asked else "faint", anchor="end"
        )
        if asked:
            self.canvas.arrow(BOXES + BOX, y, DECODER, y, "line")

    def _feed(self, y: float, to_y: float, color: str, *, dashed: bool) -> None:
        """Draw the way of the input to a network, dashed where it is not asked."""
        away = math.hypot(BOXES - INPUT, to_y - y)
        x = INPUT + RADIUS * (BOXES - INPUT) / away
        y += RADIUS * (to_y - y) / away
        if dashed:
            self.canvas.stroke(x, y, BOXES, to_y, color, 1.2, "4 3")
        else:
            self.canvas.arrow(x, y, BOXES, to_y, color)

    def _decoder(self, networks: int) -> None:
        """Draw the decoder beside the first networks."""
        height = self._middle(networks - 1) - self.top + self.box / 2
        self.canvas.rectangle(DECODER, self.top, BAR, height, "paper", "line")
        x, y = DECODER + BAR / 2 + FOOT, self.top + height / 2
        self.canvas.text(x, y, "decoder", "ink", anchor="middle", upwards=True)

    def _answer(self, i: int) -> None:
        y = self._middle(i)
        gone = i in self.lost
        color = "lost" if i in self.undecodable else "found" if gone else "line"
        self.canvas.arrow(DECODER + BAR, y, ANSWERS - 8, y, color)
        if not gone:
            self.canvas.formula(ANSWERS, y + FOOT, f"f_{i + 1}", "ink")
            self.canvas.text(ANSWERS + 24, y + FOOT, "its own answer", "faint")
        elif i in self.undecodable:
            alone = self._symbol(closest_coded(self.betas, i, range(self.num_coded)))
            self.canvas.formula(ANSWERS, y + FOOT, f"argmax {alone} alone", "lost")
        else:
            self.canvas.formula(ANSWERS, y + FOOT, self._decoding(i), "found")

    def _symbol(self, c: int) -> str:
        return "f_c" if self.num_coded == 1 else f"f_c{c + 1}"

    def _needed(self, i: int) -> list[int]:
        """The other experts that take part in decoding this one."""
        others = range(len(self.names)) if self.labels is None else self.labels.sharing(i)
        return [j for j in others if j != i]

    def _decoding(self, i: int) -> str:
        """Write how a missing expert's answer is computed."""
        own = f"f_{i + 1}"
        needed = self._needed(i)
        if self.num_coded > 1:
            symbols = [self._symbol(c) for c in range(self.num_coded)]
            answered = [f"f_{j + 1}" for j in needed if j not in self.lost]
            if len(symbols) > SEVERAL:
                symbols = [symbols[0], "…", symbols[-1]]
            if len(answered) > SEVERAL:
                answered = ["the other experts"]
            return f"{own} from {', '.join([*symbols, *answered])}"
        if not needed:
            return f"{own} ≈ f_c / β_{i + 1}"
        if len(needed) < SEVERAL:
            terms = " ".join(f"− β_{j + 1} f_{j + 1}" for j in needed)
            return f"{own} ≈ ( f_c {terms} ) / β_{i + 1}"
        return f"{own} ≈ ( f_c − Σ β_j f_j ) / β_{i + 1}"

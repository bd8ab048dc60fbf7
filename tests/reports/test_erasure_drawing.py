import itertools
import xml.etree.ElementTree as ET

import pytest

from coin_hf.erasure.design import design
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.reports.erasure_drawing import erasure_drawing
from coin_hf.reports.svg import DARK, LIGHT, dark_rules

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()).strip() for each in ET.fromstring(svg).iter(f"{SVG}text")]


def crosses(svg: str) -> int:
    """The lines in the colour of what is lost: two cross out a network."""
    return sum(
        each.get("class") == "stroke-lost" for each in ET.fromstring(svg).iter(f"{SVG}line")
    ) // 2  # fmt: skip


def test_one_missing_of_two() -> None:
    svg = erasure_drawing([0.5, 0.5], ["low", "high"], ["high"])
    said = texts(svg)
    assert {"low", "high", "coded model", "decoder", "its own answer"} <= set(said)
    assert "f2 ≈ ( fc − β1 f1 ) / β2" in said
    assert crosses(svg) == 1
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Missing: high"
    assert "low: its own answer. high: missing; its answer is decoded" in str(
        root.findtext(f"{SVG}desc")
    )


@pytest.mark.parametrize("n", [2, 4, 8, 16])
@pytest.mark.parametrize("m", [1, 2])
def test_every_network_is_inside_and_every_missing_one_crossed_out(n: int, m: int) -> None:
    names = [f"expert {i}" for i in range(n)]
    svg = erasure_drawing(design(n, m), names, range(m))
    assert set(names) <= set(texts(svg))
    assert crosses(svg) == m
    root = ET.fromstring(svg)
    height = float(str(root.get("height")))
    boxes = [each for each in root.iter(f"{SVG}rect") if each.get("width") == "176"]
    assert len(boxes) == n + m
    edges = [(float(str(b.get("y"))), float(str(b.get("height")))) for b in boxes]
    assert all(y > 0 and y + tall < height for y, tall in edges)
    assert all(y + tall < after for (y, tall), (after, _) in itertools.pairwise(edges))


def test_what_cannot_be_decoded_is_a_coded_model_alone() -> None:
    svg = erasure_drawing([0.5, 0.5], ["low", "high"], [0, 1])
    assert texts(svg).count("argmax fc alone") == 2
    assert '" class="fill-lost" fill="#b91c1c"/>' in svg  # the arrows to them, as the cross
    several = erasure_drawing([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]], ["a", "b", "c"], [0, 1, 2])
    assert [t for t in texts(several) if "alone" in t] == [
        "argmax fc1 alone", "argmax fc2 alone", "argmax fc1 alone",
    ]  # fmt: skip  # the one that weights it most


def test_experts_without_a_common_label_need_no_other() -> None:
    sets = LabelSets(rows=((0, 1), (2, 3)), count=4)
    svg = erasure_drawing([0.5, 0.5], ["a", "b"], [0, 1], labels=sets)
    assert {"f1 ≈ fc / β1", "f2 ≈ fc / β2"} <= set(texts(svg))


def test_names_are_text() -> None:
    svg = erasure_drawing([0.5, 0.5], ["<script>x</script>", "a\nb&\x07"], [0])
    long = erasure_drawing([0.5, 0.5], ["W" * 200, "短" * 200], [0])
    assert {"W" * 18 + "…", "短" * 9 + "…"} <= set(texts(long))
    assert "<script" not in svg
    assert {"<script>x</script>", "a�b&�"} <= set(texts(svg))


def test_themes() -> None:
    light, dark, auto = (
        erasure_drawing([0.5, 0.5], ["a", "b"], [0], theme=theme)
        for theme in ("light", "dark", "auto")
    )
    assert LIGHT["paper"] in light
    assert LIGHT["paper"] not in dark
    assert "<style" not in light + dark
    assert f"<style>{dark_rules()}</style>" in auto
    assert set(LIGHT) == set(DARK)
    assert ".dark .erasure .fill-paper{fill:#111827}" in dark_rules(".dark")


@pytest.mark.parametrize("colors", [LIGHT, DARK])
def test_words_stand_out_from_what_is_behind_them(colors: dict[str, str]) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    pairs = [("ink", each) for each in ("paper", "expert", "coded", "gone")]
    pairs += [(each, "paper") for each in ("faint", "lost", "found")] + [("faint", "coded")]
    for word, behind in pairs:
        low, high = sorted([luminance(colors[word]), luminance(colors[behind])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (word, behind)  # WCAG 2, level AA


def test_equal_arguments_equal_bytes() -> None:
    svg = erasure_drawing([0.25, 0.75], ["low", "high"], ["low"])
    assert svg == erasure_drawing([[0.25, 0.75]], ["low", "high"], [0])


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="expected the names of 2 experts, got 3"):
        erasure_drawing([0.5, 0.5], ["a", "b", "c"])
    with pytest.raises(ValueError, match="there is no expert 'c': they are named a, b"):
        erasure_drawing([0.5, 0.5], ["a", "b"], ["c"])

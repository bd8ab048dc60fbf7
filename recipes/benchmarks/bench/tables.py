"""Markdown from results: the numbers of a page are never typed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import sentence
from bench.measure import WAYS

PAGE = Path(__file__).parents[3] / "docs" / "pages" / "benchmarks" / "index.md"
"""The page that shows what was measured."""
WRONG = 1e-6
"""A float64 error above this is no rounding."""


def fisher_section(result: dict[str, Any]) -> str:
    """The section on the Fisher."""
    parts = [case_table(key, entry) for key, entry in result.get("cases", {}).items()]
    if "scaling" in result:
        parts.append(scaling_table(result["scaling"]))
    return "\n\n".join(parts)


def case_table(key: str, entry: dict[str, Any]) -> str:
    """One case: every way's time, memory and error."""
    shares = entry["tf32_peak_tflops"] is not None
    head = ["way", "s, min", "s, median", "x bound", "samples timed", "peak GiB", "error"]
    head += ["share of TF32 peak"] * shares + ["remark"]
    rows = [_way_row(name, way, entry, shares) for name, way in entry["ways"].items()]
    title = f"### {key}, {entry['estimator']}"
    return f"{title}\n\n{sentence(entry['machine'])}; {entry['rounds']} rounds.\n\n" + table(
        head, rows
    )


def _way_row(name: str, way: dict[str, Any], entry: dict[str, Any], shares: bool) -> list[str]:
    """One way's cells."""
    title = WAYS[name].title
    if "failure" in way:
        return [title, *["-"] * (6 + shares), f"fails: {way['failure']}"]
    seconds = way["seconds"]
    cells = [
        title,
        number(seconds["min"]),
        number(seconds["median"]),
        f"{way['ratio']:.2f}",
        f"{way['samples']}" + " (scaled)" * (way["samples"] < entry["samples"]),
        f"{way['peak_gib']:.2f}",
        f"{way['error']:.0e}" if way.get("error") else "-",
    ]
    if shares:
        rate = entry["bound_flops"] / seconds["min"] / 1e12
        cells.append(f"{100 * rate / entry['tf32_peak_tflops']:.0f} %")
    return [*cells, remark(way)]


def remark(way: dict[str, Any]) -> str:
    """What a reader must know of a way's result."""
    said = []
    if way.get("error", 0.0) > WRONG:
        said.append("**wrong**")
    if way.get("error") == 0:
        said.append("the reference")
    if way.get("missing"):
        said.append(f"{way['missing']} parameters missing")
    return ", ".join(said)


def scaling_table(entry: dict[str, Any]) -> str:
    """Time against P, K and processes."""
    lines = [f"### Scaling, {entry['network']}", sentence(entry["machine"]) + "."]
    lines.append("![Time against P and K](fisher_scaling.png)")
    for curve in entry["curves"]:
        rows = [["seconds", *(number(point["seconds"]) for point in curve["points"])]]
        lines.append(table([curve["title"], *(str(p["x"]) for p in curve["points"])], rows))
    processes = entry["processes"]
    rows = [["seconds", *(number(point["seconds"]) for point in processes["points"])]]
    lines.append(table([processes["title"], *(str(p["x"]) for p in processes["points"])], rows))
    return "\n\n".join(lines)


def coding_table(result: dict[str, Any]) -> str:
    """The coding step beside the distillation baseline."""
    seconds, few = result["seconds"], f"{2 * result['few']} samples, the best two on all"
    probes = f"{result['probes']} probe{'s' * (result['probes'] > 1)} a sample"

    def shares(key: str, form: str = "{}") -> list[str]:
        share = f"{100 * result['ratios'][key]:.1f} %"
        return [form.format(number(seconds[key])), form.format(share)]

    rows = [
        [f"two Fishers, {probes}", number(seconds["probed"]), ""],
        [f"lambda: the experts' logits, six candidates on {few}", number(seconds["raced"]), ""],
        ["**COIN, the coding step by default**", *shares("coin", "**{}**")],
        ["two exact Fishers", number(seconds["exact"]), ""],
        ["lambda: the experts' logits, six candidates on all samples", number(seconds["full"]), ""],
        ["COIN, the coding step as in the paper", *shares("paper")],
        ["the bound of two exact Fishers: forward, input-backwards", *shares("bound")],
        [f"distillation, {result['distillation']}", number(seconds["distillation"]), "100 %"],
        ["refining: `layerwise`, four copies of the samples", number(seconds["layerwise"]), ""],
    ]
    machine = f"{sentence(result['machine'])}; medians of {result['rounds']} rounds."
    head = f"### {result['case']}\n\n{machine}"
    after = f"`layerwise` takes {result['refine_ratio']:.2f} times what two exact Fishers take."
    found = table(["step", "seconds", "by distillation"], rows)
    return f"{head}\n\n{found}\n\n{after}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    if head[-1] == "remark":
        rule[-1] = "---"
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(seconds: float) -> str:
    """Seconds with three digits that mean something."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


def read(path: Path) -> dict[str, Any]:
    """A result file, or an empty result."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between `<!-- name: begin -->` and `<!-- name: end -->`.

    Args:
        page: The file.
        name: Of the section.
        text: Its new content.

    Raises:
        ValueError: If the markers are not there.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page.name} lacks {begin} or {end}: put both, on lines of their own")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")

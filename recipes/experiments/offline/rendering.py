"""Tables of the kept results, in the paper's shape: rows are methods, columns datasets or pairs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kept import Result, experiments

from coin_hf.comparison.statistics import singles
from coin_hf.evaluation.methods import NO_CODED_MODEL
from coin_hf.reports.comparison_table import comparison_table, title
from coin_hf.reports.tables import TITLES, cell

Kept = Mapping[str, Mapping[str, Result]]
"""Results by foundation and experiment."""
Spread = dict[str, float | None]
"""`mean` and `std` over the seeds."""

FOUNDATIONS = {"lite0": "EfficientNet-Lite0", "resnet50": "ResNet50"}
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "digits": "UCI digits"}
TABLES = {
    "table1": ("Table I", "two experts of one dataset, labels 0–4 and 5–9"),
    "table2": ("Table II", "two experts of different datasets"),
}
FIGURES = {
    "fig2a": ("Figure 2a", "NDA while distillation is trained"),
    "fig2b": ("Figure 2b", "NDA against the number of samples P"),
}
OTHERS = {"ablation": ("Ablation", "the steps of `refine`, and the rivals on the same copies")}
"""Experiments that the paper does not have."""
NOTHING = "No results are kept yet."


@dataclass(frozen=True)
class Measure:
    """A number of the summary, and how a table shows it."""

    title: str
    key: str
    scale: float
    form: str
    best: Callable[[Iterable[float]], float]
    tie: Callable[[float], float]
    """How far from the best one, as shown, still counts as equal to it."""

    def shown(self, spread: Spread | None, *, std: bool = True) -> str:
        """Write one cell, not yet bold."""
        if spread is None:
            return "-"
        if spread["mean"] is None:
            return "n/a"
        text = self.form.format(self.scale * spread["mean"])
        if std and spread["std"] is not None:
            text += f" ± {self.form.format(self.scale * spread['std'])}"
        return text

    def column(self, result: Result, *, std: bool = True) -> dict[str, str]:
        """Write the cells of one experiment by contender, the best and its ties bold."""
        found: dict[str, Spread] = {entry["name"]: entry[self.key] for entry in result["summary"]}
        known = {
            name: self.scale * spread["mean"]
            for name, spread in found.items()
            if spread["mean"] is not None
        }
        top = self.best(known.values()) if known else 0.0
        bold = {
            name for name, value in known.items() if round(abs(value - top), 9) <= self.tie(top)
        }
        cells = {name: self.shown(spread, std=std) for name, spread in found.items()}
        return {name: f"**{text}**" if name in bold else text for name, text in cells.items()}


NDA = Measure("NDA, in percent", "mean_nda", 1.0, "{:.1f}", max, lambda top: 0.05)
MEASURES = (
    NDA,
    Measure("Agreement, in percent", "agreement", 100.0, "{:.1f}", max, lambda top: 0.05),
    Measure("Coding loss", "coding_loss", 1.0, "{:.3g}", min, lambda top: 0.005 * top),
)


def of_table(found: Mapping[str, Result], table: str) -> dict[str, Result]:
    """Return the experiments that are the columns of a table, by what the columns are called."""
    return {column(name): r for name, r in found.items() if name.startswith(f"{table}-")}


def column(name: str) -> str:
    """Return the datasets of an experiment, as a table calls them."""
    return " + ".join(DATASETS.get(part, part) for part in name.split("-")[1:])


def contenders(results: Iterable[Result]) -> dict[str, str]:
    """Return the titles of all contenders by name, in the order of the results."""
    return {entry["name"]: title(entry) for result in results for entry in result["summary"]}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def table(found: Mapping[str, Result], measure: Measure) -> str:
    """Render one table in the paper's shape: rows are methods, columns are datasets or pairs."""
    columns = [measure.column(result) for result in found.values()]
    rows = [
        [text, *(cells.get(name, "-") for cells in columns)]
        for name, text in contenders(found.values()).items()
    ]
    if measure is NDA:
        means = [result["controls"][NO_CODED_MODEL]["mean_nda"] for result in found.values()]
        shown = [measure.shown({"mean": mean, "std": None}) for mean in means]
        rows.append([TITLES[NO_CODED_MODEL], *shown])
    return markdown(["method", *found], rows)


def facts(result: Result) -> str:
    """Say what one experiment was run on."""
    rows = result["rows"]
    experts = ", ".join(
        f"{one['missing']} {100 * one['expert_accuracy']:.1f} % of {one['points']}"
        for one in singles(rows[0])
    )
    sizes = ", ".join(map(str, dict.fromkeys(row["samples"] for row in rows)))
    seeds = ", ".join(map(str, dict.fromkeys(row["seed"] for row in rows)))
    trained = {
        title(row): row["settings"]["distillation"]["epochs"]
        for row in rows
        if row["coder"] == "distillation"
    }
    epochs = "".join(f"; {name}: {count} epochs" for name, count in trained.items())
    run = result["run"]
    return (
        f"{result['architecture']}. Experts right on their test images: {experts}. "
        f"P = {sizes}; sample seeds {seeds}{epochs}. "
        f"Run on {run['device']} with torch {run['versions']['torch']}."
    )


def details(name: str, result: Result) -> str:
    """Render the whole comparison of one experiment, folded."""
    kind = name.partition("-")[0]
    paper, what = (TABLES | FIGURES | OTHERS)[kind]
    heading = f"{paper}: {column(name) or what}"
    lines = ["<details>", f"<summary>{heading}</summary>", "", facts(result), ""]
    return "\n".join([*lines, comparison_table(result, "markdown"), "", "</details>"])


def page(kept: Kept) -> str:
    """Render everything, foundation by foundation."""
    parts = []
    for foundation, found in kept.items():
        parts.append(f"## {FOUNDATIONS.get(foundation, foundation)}")
        for kind, (name, what) in TABLES.items():
            columns = of_table(found, kind)
            if columns:
                parts.append(f"### {name}: {what}")
                parts += [f"{m.title}:\n\n{table(columns, m)}" for m in MEASURES]
        for kind, (name, what) in FIGURES.items():
            if kind in found:
                parts += [f"### {name}: {what}", f"![{name}](offline/{foundation}/{kind}.png)"]
        for kind, (name, what) in OTHERS.items():
            if kind in found:
                parts += [f"### {name}: {what}", facts(found[kind])]
                parts.append(comparison_table(found[kind], "markdown"))
        parts.append("### Everything measured")
        parts += [details(name, found[name]) for name in found if name not in OTHERS]
    return "\n\n".join(parts) or NOTHING


def short(kept: Kept) -> str:
    """Render the mean NDA alone: a row for each experiment, foundations side by side."""
    planned = dict.fromkeys(name for names in experiments().values() for name in names)
    found = {
        name: [results.get(name) for results in kept.values()]
        for name in planned
        if column(name) and any(name in results for results in kept.values())
    }
    if not found:
        return NOTHING
    names = contenders(result for each in found.values() for result in each if result)
    rows = []
    for name, each in found.items():
        cells = [NDA.column(result, std=False) if result else {} for result in each]
        rows.append([column(name), *(" / ".join(c.get(n, "-") for c in cells) for n in names)])
    heading = " / ".join(FOUNDATIONS.get(foundation, foundation) for foundation in kept)
    return markdown([f"NDA (%), {heading}", *names.values()], rows)

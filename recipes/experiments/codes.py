"""NDA against the number of experts N and of coded models M, on handwritten digits.

    python recipes/experiments/codes.py [--folder FOLDER] [--experts 2 4 8 16 32]

ResNet50 at 32x32 from one shared start, as in `coin-hf demo`, fine-tuned for groups of the ten
digits: two experts (0-4, 5-9), four (0-2, 3-4, 5-7, 8-9), eight (0-2, 1-3, ..., 7-9: eight groups
of ten labels must overlap, or some expert would know one digit alone), sixteen (the ten triples of
neighbours on the circle of digits, and six of every third digit), thirty-two (four more triples
of every third digit, and others); from sixteen on refined behind plain averaging, which is as good
as behind COIN and needs no Fishers.
P = 200 samples in every case, 192 from sixteen on. M = 1 has equal betas, M = 2, 3 designed ones;
each chooses its own lambda, and is then refined by `layerwise` with four copies. What is there
already is not made again.

Writes `results/codes.json` beside this file, and from it the page and its figure.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coin_hf.demo.run import ARCHITECTURE, Training, make_digits, make_experts
from coin_hf.erasure.amplification import worst_amplification
from coin_hf.erasure.betas import rows_of
from coin_hf.erasure.design import design, vandermonde
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe
from coin_hf.repository.atomic import write_whole

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "experiments" / "codes.md"
DESIGNS = [(2, 2), (3, 2), (4, 2), (5, 2), (6, 2), (8, 2), (3, 3), (4, 3), (6, 3), (8, 3)]
Group = tuple[int, ...]
GROUPS: dict[int, list[Group]] = {
    2: [tuple(range(5)), tuple(range(5, 10))],
    4: [(0, 1, 2), (3, 4), (5, 6, 7), (8, 9)],
    8: [(i, i + 1, i + 2) for i in range(8)],
    16: [
        *((i, (i + 1) % 10, (i + 2) % 10) for i in range(10)),
        *((i, (i + 3) % 10, (i + 6) % 10) for i in range(6)),
    ],
}
GROUPS[32] = [
    *GROUPS[16],
    *((i, (i + 3) % 10, (i + 6) % 10) for i in range(6, 10)),
    *((i, (i + 2) % 10, (i + 5) % 10) for i in range(10)),
    *((i, (i + 4) % 10, (i + 8) % 10) for i in range(2)),
]
FINE_TUNING = Training(epochs=2, lr=1e-4)
SAMPLES = 200
CODED = {2: (1, 2), 4: (1, 2, 3), 8: (1, 2, 3), 16: (1, 2, 3), 32: (1, 2)}
TESTED = {32: 40}
"""Test images of each expert, where every one of them is too many for N x N passes."""


def name_of(group: Group) -> str:
    """Return the name of the expert for a group of digits."""
    joined = group[1] == group[0] + 1 and group[-1] == group[0] + len(group) - 1
    return f"digits-{group[0]}-{group[-1]}" if joined else f"digits-{'-'.join(map(str, group))}"


def coder_of(n: int) -> str:
    """Return the coder for so many experts."""
    return "averaging" if n >= 16 else "coin"


def recipe_for(folder: Path, groups: Sequence[Group], coded: int, *, refined: bool) -> Recipe:
    """Write the recipe for experts that lie in `folder`."""
    names = [name_of(group) for group in groups]
    return Recipe.from_dict(
        {
            "experts": [
                {"model": str(folder / "experts" / name), "dataset": name} for name in names
            ],
            "datasets": {
                name: {"path": str(folder / "digits"), "labels": list(group)}
                for name, group in zip(names, groups, strict=True)
            },
            "coded": coded,
            "coder": coder_of(len(groups)),
            "lam": "auto",
            "refine": ["layerwise"] if refined else [],
            "augment": {"copies": 4} if refined else None,
            "race": False,
            "fisher": {"estimator": "exact"},
            "samples": {"per_expert": SAMPLES // len(groups), "seed": 0},
            "evaluation": {"split": "test", "batch_size": 64, "limit": TESTED.get(len(groups))},
        }
    )


def measure(
    folder: Path, experts: Sequence[int], architecture: str, file: Path
) -> list[dict[str, Any]]:
    """Make the experts, encode every case that the file lacks, and keep what is asked here."""
    groups = {name_of(group): list(group) for n in experts for group in GROUPS[n]}
    lacking = {k: group for k, group in groups.items() if not (folder / "experts" / k).exists()}
    if not (folder / "digits").exists():
        make_digits(folder / "digits")
    if lacking:
        make_experts(folder / "digits", folder / "experts", architecture, lacking, FINE_TUNING)
    cases = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    known = {(case["experts"], case["coded"]) for case in cases}
    for n in experts:
        for coded in CODED[n]:
            if (n, coded) not in known:
                cases.append(_case(folder, n, coded))
                write_whole(file, json.dumps(cases, indent=1) + "\n")
    return sorted(cases, key=lambda case: (case["experts"], case["coded"]))


def _case(folder: Path, n: int, coded: int) -> dict[str, Any]:
    """Encode once without and once with `layerwise`."""
    found = []
    for refined in (False, True):
        recipe = recipe_for(folder, GROUPS[n], coded, refined=refined)
        result = encode(recipe, progress=True).result.dump()
        found.append(result)
        print(n, coded, result["lam"], result["mean_nda"], result["mean_nda_several"], flush=True)
    plain, result = found
    rows = rows_of(plain["betas"])
    singles = [e for e in plain["erasures"] if not e["beside"]]
    kept = (
        "betas", "lam", "patterns", "mean_nda", "mean_nda_several", "calibration", "detection",
        "erasures", "architecture", "run",
    )  # fmt: skip
    return {
        "experts": n,
        "coded": coded,
        "groups": [list(group) for group in GROUPS[n]],
        "worst_amplification": worst_amplification(rows),
        "vandermonde": worst_amplification(vandermonde(n, coded)),
        "expert_accuracy": sum(e["expert_accuracy"] for e in singles) / n,
        **{key: plain[key] for key in kept},
        "refined": {key: result[key] for key in (*kept, "refinements")},
    }


def agreement(result: dict[str, Any], size: int, method: str) -> float:
    """Average a method's agreement over the patterns of so many experts, in percent."""
    values = [
        e["scores"][method]["agreement"]
        for e in result["erasures"]
        if len(e["beside"]) == size - 1 and method in e["scores"]
    ]
    return 100 * sum(values) / len(values)


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Render the cases as a table."""
    lines = [
        "| experts | coded models | missing at once | worst amplification (Vandermonde) "
        "| experts' accuracy | layerwise | its agreement | coded alone, own labels "
        "| COIN | plain averaging | no coded model |",
        f"|{'---:|' * 11}",
    ]
    for case in cases:
        refined, coder = case["refined"], coder_of(case["experts"])
        sizes = {"1": case["mean_nda"], **case["mean_nda_several"]}
        better = {"1": refined["mean_nda"], **refined["mean_nda_several"]}
        for size, means in sizes.items():
            values = [
                better[size].get(coder),
                agreement(refined, int(size), coder),
                better[size].get("coded alone, own labels"),
                *(means.get(method) for method in ("coin", "averaging", "no coded model")),
            ]
            ndas = (f"{value:.1f}" if value is not None else "-" for value in values)
            lines.append(
                f"| {case['experts']} | {case['coded']} | {size} "
                f"| {case['worst_amplification']:.2f} ({case['vandermonde']:.2f}) "
                f"| {100 * case['expert_accuracy']:.1f} % | {' | '.join(ndas)} |"
            )
    return "\n".join(lines)


def designs() -> str:
    """Render the worst amplification of designed codes beside Vandermonde's."""
    lines = [
        "| experts | coded models | designed | best Vandermonde | better by |",
        "|---:|---:|---:|---:|---:|",
    ]
    for n, m in DESIGNS:
        mine, other = (worst_amplification(make(n, m)) for make in (design, vandermonde))
        lines.append(f"| {n} | {m} | {mine:.2f} | {other:.2f} | {other / mine:.2f} x |")
    return "\n".join(lines)


def render(cases: Sequence[dict[str, Any]], page: Path) -> None:
    """Put the tables into the page, between its marks."""
    text = page.read_text(encoding="utf-8")
    for mark, content in (("designs", designs()), ("nda", table(cases))):
        begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def figure(cases: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw NDA against N, a line for each M, number of missing experts, refined or not."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.8, 4.2), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    styles = {
        (1, "1"): ("#1f4e8c", "M = 1, one missing"),
        (2, "1"): ("#3a8f5d", "M = 2, one missing"),
        (2, "2"): ("#b0432f", "M = 2, two missing"),
    }
    for (coded, size), (color, label) in styles.items():
        for refined, line in ((True, "-o"), (False, "--s")):
            found = []
            for case in cases:
                if case["coded"] == coded:
                    result = case["refined"] if refined else case
                    means = {"1": result["mean_nda"], **result["mean_nda_several"]}[size]
                    coder = coder_of(case["experts"]) if refined else "coin"
                    if coder in means:
                        found.append((case["experts"], means[coder]))
            title = "layerwise" if refined else "COIN"
            axes.plot(
                *zip(*found, strict=True), line, color=color, label=f"{title}, {label}",
                alpha=1.0 if refined else 0.45,
            )  # fmt: skip
    ticks = sorted({case["experts"] for case in cases})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("experts N")
    axes.set_ylabel("normalized decoding accuracy (%)")
    axes.set_ylim(80, 101)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    canvas.savefig(path, dpi=150)


def main() -> None:
    """Measure, write, render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to work; kept, and used again")
    parser.add_argument(
        "--experts", type=int, nargs="+", choices=sorted(GROUPS), default=sorted(GROUPS)
    )
    parser.add_argument("--architecture", default=ARCHITECTURE, help="timm's name")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--render", action="store_true", help="only render the results again")
    given = parser.parse_args()
    file = given.results / "codes.json"
    if not given.render:
        given.results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            folder = given.folder or Path(place)
            cases = measure(folder, given.experts, given.architecture, file)
            write_whole(file, json.dumps(cases, indent=1) + "\n")
    cases = json.loads(file.read_text(encoding="utf-8"))
    print(table(cases))
    if given.results == RESULTS:
        figure(cases, PAGE.with_suffix(".png"))
        render(cases, PAGE)


if __name__ == "__main__":
    main()

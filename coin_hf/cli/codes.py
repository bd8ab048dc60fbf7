"""The commands for codes, Fishers and re-coding; `coin_hf.cli` holds the command line itself."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from coin_hf.errors import InputError

NUMBERS = ("--betas", "--missing")
"""Options that take several numbers: `--betas 0.7 0.3`."""

Overrides = Annotated[
    list[str],
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="Change a dataset's key."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Betas = Annotated[
    list[str],
    typer.Option(metavar="NUMBERS", help="One weight for each expert; once for each coded model."),
]


def gathered(arguments: Sequence[str]) -> list[str]:
    """Join the numbers behind `--betas` or `--missing` to one argument each.

    Args:
        arguments: The command line.

    Returns:
        The command line with `--betas 0.7,0.3` for `--betas 0.7 0.3`.
    """
    found: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        found.append(word)
        if word in NUMBERS:
            numbers = []
            while rest and _is_number(rest[0]):
                numbers.append(rest.pop(0))
            if numbers:
                found.append(",".join(numbers))
    return found


def code(
    experts: Annotated[int, typer.Option(min=2, help="Number of experts.")],
    coded: Annotated[int, typer.Option(min=1, help="Number of coded models.")] = 1,
    betas: Betas = [],  # noqa: B006  # typer reads it, nothing changes it
    as_json: AsJson = False,
) -> None:
    """Design an erasure code, or look at one: its betas and what each erasure amplifies."""
    from itertools import combinations

    from coin_hf.erasure.amplification import amplification, check_code, worst_amplification
    from coin_hf.erasure.betas import rows_of, written
    from coin_hf.erasure.design import design, vandermonde
    from coin_hf.erasure.patterns import erasure_patterns

    rows = rows_of(_rows(betas)) if betas else design(experts, coded)
    try:
        if len(rows[0]) != experts:
            raise ValueError(f"--betas has {len(rows[0])} values for {experts} experts")
        check_code(rows)
    except ValueError as error:
        raise InputError(str(error)) from error
    everything = tuple(range(len(rows)))
    table = []
    for pattern in erasure_patterns(experts, len(rows))[0]:
        fewest = [amplification(rows, pattern, c) for c in combinations(everything, len(pattern))]
        table.append((pattern, amplification(rows, pattern, everything), max(fewest)))
    worst, plain = worst_amplification(rows), worst_amplification(vandermonde(experts, len(rows)))
    if as_json:
        patterns = [
            {"missing": list(pattern), "amplification": best, "with_fewest_coded": least}
            for pattern, best, least in table
        ]
        found = {"betas": written(rows), "patterns": patterns}
        print(json.dumps({**found, "worst": worst, "vandermonde": plain}, indent=2))
        return
    print(f"betas: {written(rows)}")
    print("missing experts  amplification  with as few coded models as needed")
    for pattern, best, least in table:
        print(f"{', '.join(map(str, pattern)):15}  {best:13.3f}  {least:34.3f}")
    print(f"worst: {worst:.3f} (normalised Vandermonde: {plain:.3f})")


def recode(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; by default TARGET, with --overwrite.")
    ] = None,
    betas: Betas = [],  # noqa: B006
    lam: Annotated[float | None, typer.Option(help="The new penalty lambda.")] = None,
    coded: Annotated[int | None, typer.Option(help="New number of coded models.")] = None,
    add: Annotated[list[str], typer.Option(help="An expert that joins: Hub id or folder.")] = [],  # noqa: B006
    dataset: Annotated[
        list[str], typer.Option(help="Its dataset: a recorded name, a Hub id or a folder.")
    ] = [],  # noqa: B006
    fisher: Annotated[
        list[str], typer.Option(help="Where its Fisher lies, if it was made before.")
    ] = [],  # noqa: B006
    drop: Annotated[list[str], typer.Option(help="Name of an expert that leaves.")] = [],  # noqa: B006
    revision: Annotated[str | None, typer.Option(help="TARGET's revision on the Hub.")] = None,
    override: Overrides = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change betas, lambda or experts of a coded model from its Fishers, without data."""
    if len(dataset) != len(add) or len(fisher) not in (0, len(add)):
        raise InputError(
            f"{len(add)} experts join, with {len(dataset)} --dataset and {len(fisher)} --fisher: "
            "give one --dataset for each --add, and one --fisher for each or none"
        )
    from coin_hf.recoding import recode as recoding

    joining = [
        recoding.Newcomer(model, of, fisher=fisher[i] if fisher else None)
        for i, (model, of) in enumerate(zip(add, dataset, strict=True))
    ]
    result = recoding.recode(
        target,
        output,
        betas=_rows(betas) if betas else None,
        lam=lam,
        coded=coded,
        add=joining,
        drop=drop,
        revision=revision,
        overrides=override,
        overwrite=overwrite,
        progress=True,
    )
    place = output or Path(target)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    names = ", ".join(expert["name"] for expert in result["experts"])
    print(f"re-coded {names} with betas {result['betas']} and lambda {result['lam']:g}")
    print(f"saved to {place}, {result['run']['seconds']['recode']:g} s", file=sys.stderr)
    print(f"not measured: run `coin-hf evaluate {place} --save`", file=sys.stderr)


def fisher(
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="Hub id or folder.")],
    dataset: Annotated[
        list[str], typer.Option(help="Hub id or folder to draw samples from; once for each.")
    ] = [],  # noqa: B006
    like: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Take the samples of a coded model.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write fisher/ to.")] = None,
    push_to: Annotated[str | None, typer.Option(metavar="REPO", help="Hub id.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The expert's revision.")] = None,
    name: Annotated[str | None, typer.Option(help="The expert's name.")] = None,
    per_expert: Annotated[int, typer.Option(min=1, help="Samples from each dataset.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of their draw.")] = 0,
    split: Annotated[str, typer.Option(help="Split they are drawn from.")] = "train",
    estimator: Annotated[str, typer.Option(help="exact, probe or auto.")] = "auto",
    probes: Annotated[int, typer.Option(min=1, help="Probes for each sample.")] = 4,
    half: Annotated[bool, typer.Option("--half", help="Save it in 16 bits.")] = False,
    override: Overrides = [],  # noqa: B006
) -> None:
    """Compute one expert's Fisher alone, for others to merge with; write or publish it."""
    if output is None and push_to is None:
        raise InputError("say where the Fisher goes: --output FOLDER, --push-to REPO, or both")
    from coin_hf.recoding import expert_fisher as publishing

    settings = {"estimator": estimator, "probes": probes, "save": "half" if half else True}
    recipe = publishing.fisher_recipe(
        dataset,
        like,
        per_expert=per_expert,
        seed=seed,
        split=split,
        fisher=settings,
        overrides=override,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = output or Path(folder)
        file = publishing.make_fisher(
            expert, recipe, place, revision=revision, name=name, progress=True
        )
        if os.environ.get("RANK", "0") != "0":
            return
        if output is not None:
            print(file)
        if push_to is not None:
            print(publishing.publish_fisher(file, push_to, private=private))


def tune_betas(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder with Fishers.")],
    missing: Annotated[
        str, typer.Option(metavar="NUMBERS", help="How often each expert is missing.")
    ],
    by: Annotated[str, typer.Option(help="error or agreement.")] = "error",
    as_json: AsJson = False,
) -> None:
    """Propose betas for experts that are not missing equally often, measured on the samples."""
    if by not in ("error", "agreement"):
        raise InputError(f"--by is 'error' or 'agreement', got '{by}'")
    from coin_hf.recoding import tune_betas as tuning

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    found = tuning.tune_betas(target, _numbers(missing), by=by, progress=progress)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(found.dump(), indent=2))
        return
    print(f"{'':12} {'error':>12} {'agreement':>10}  betas")
    for title in ("recorded", "closed_form", "best"):
        one = getattr(found, title)
        betas = found.dump()[title]["betas"]
        print(f"{title:12} {one.error:12.5g} {one.agreement:10.4f}  {betas}")
    words = " ".join("--betas " + " ".join(f"{b:g}" for b in row) for row in found.best.betas)
    print(f"to take the best: coin-hf recode {target} {words} --output FOLDER", file=sys.stderr)


def _rows(betas: Sequence[str]) -> list[float] | list[list[float]]:
    rows = [_numbers(row) for row in betas]
    return rows[0] if len(rows) == 1 else rows


def _numbers(text: str) -> list[float]:
    words = text.replace(",", " ").split()
    if not words or not all(map(_is_number, words)):
        raise InputError(f"expected numbers such as `0.7 0.3`, got '{text}'")
    return [float(word) for word in words]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


COMMANDS: dict[str, Any] = {
    "code": code,
    "recode": recode,
    "tune-betas": tune_betas,
    "fisher": fisher,
}
"""The commands by the name they are called by."""

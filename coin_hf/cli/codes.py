"""Commands for erasure codes, Fishers and re-coding."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from coin_hf.cli.numbers import numbers, rows
from coin_hf.cli.output import AsJson, Overrides, plain_json, speaks
from coin_hf.errors import InputError

Betas = Annotated[
    list[str],
    typer.Option(metavar="NUMBERS", help="One weight per expert; repeat for each coded model."),
]


def design(
    experts: Annotated[int, typer.Option(min=2, help="Number of experts.")],
    coded: Annotated[int, typer.Option(min=1, help="Number of coded models.")] = 1,
    betas: Betas = [],  # noqa: B006  # typer reads it, nothing changes it
    as_json: AsJson = False,
) -> None:
    """Design or inspect an erasure code: betas, and error amplification of each erasure."""
    from itertools import combinations

    from coin_hf.erasure import design as designs
    from coin_hf.erasure.amplification import amplification, check_code, worst_amplification
    from coin_hf.erasure.betas import rows_of, written
    from coin_hf.erasure.patterns import erasure_patterns

    weights = rows_of(rows(betas)) if betas else designs.design(experts, coded)
    try:
        if len(weights[0]) != experts:
            raise ValueError(f"--betas has {len(weights[0])} values for {experts} experts")
        check_code(weights)
    except ValueError as error:
        raise InputError(str(error)) from error
    everything = tuple(range(len(weights)))
    table = []
    for pattern in erasure_patterns(experts, len(weights))[0]:
        fewest = [
            amplification(weights, pattern, c) for c in combinations(everything, len(pattern))
        ]
        table.append((pattern, amplification(weights, pattern, everything), max(fewest)))
    worst, plain = (
        worst_amplification(weights),
        worst_amplification(designs.vandermonde(experts, len(weights))),
    )
    if as_json:
        patterns = [
            {"missing": list(pattern), "amplification": best, "with_fewest_coded": least}
            for pattern, best, least in table
        ]
        found = {"betas": written(weights), "patterns": patterns}
        print(plain_json({**found, "worst": worst, "vandermonde": plain}))
        return
    print(f"betas: {written(weights)}")
    print("missing experts  amplification  with as few coded models as needed")
    for pattern, best, least in table:
        print(f"{', '.join(map(str, pattern)):15}  {best:13.3f}  {least:34.3f}")
    print(f"worst: {worst:.3f} (normalised Vandermonde: {plain:.3f})")


def recode(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")],
    output: Annotated[
        Path | None, typer.Option(help="Output folder; by default TARGET, with --overwrite.")
    ] = None,
    betas: Betas = [],  # noqa: B006
    lam: Annotated[float | None, typer.Option(help="New penalty lambda.")] = None,
    coded: Annotated[int | None, typer.Option(help="New number of coded models.")] = None,
    add: Annotated[list[str], typer.Option(help="Hub id or folder to add.")] = [],  # noqa: B006
    dataset: Annotated[
        list[str], typer.Option(help="Dataset of an added expert: recorded name, Hub id or folder.")
    ] = [],  # noqa: B006
    fisher: Annotated[
        list[str], typer.Option(help="Fisher of an added expert, if published: Hub id or folder.")
    ] = [],  # noqa: B006
    drop: Annotated[list[str], typer.Option(help="Name of an expert to drop.")] = [],  # noqa: B006
    revision: Annotated[str | None, typer.Option(help="TARGET's revision on the Hub.")] = None,
    override: Overrides = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change betas, lambda or experts of a coded model, without data, from its Fishers."""
    if len(dataset) != len(add) or len(fisher) not in (0, len(add)):
        raise InputError(
            f"{len(add)} experts join, with {len(dataset)} --dataset and {len(fisher)} --fisher: "
            "give one --dataset for each --add, and one --fisher for each or none"
        )
    from coin_hf.recoding.changes import Newcomer
    from coin_hf.recoding.recode import recode as run

    joining = [
        Newcomer(model, of, fisher=fisher[i] if fisher else None)
        for i, (model, of) in enumerate(zip(add, dataset, strict=True))
    ]
    result = run(
        target,
        output,
        betas=rows(betas) if betas else None,
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
        print(plain_json(result.dump()))
        return
    names = ", ".join(expert.name for expert in result.experts)
    print(f"re-coded {names} with betas {result.betas} and lambda {result.lam:g}")
    print(f"saved to {place}, {result.run.seconds['recode']:g} s", file=sys.stderr)
    print(f"not measured: run `coin-hf evaluate {place} --save`", file=sys.stderr)


def fisher(
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="Hub id or folder.")],
    dataset: Annotated[
        list[str], typer.Option(help="Hub id or folder to draw samples from; repeatable.")
    ] = [],  # noqa: B006
    like: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Use the samples of a coded model.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write fisher/ to.")] = None,
    push_to: Annotated[str | None, typer.Option(metavar="REPO", help="Hub id to push to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The expert's revision.")] = None,
    name: Annotated[str | None, typer.Option(help="The expert's name.")] = None,
    per_expert: Annotated[int, typer.Option(min=1, help="Samples from each dataset.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    split: Annotated[str, typer.Option(help="Split to draw from.")] = "train",
    estimator: Annotated[str, typer.Option(help="exact, probe or auto.")] = "auto",
    probes: Annotated[int, typer.Option(min=1, help="Probes for each sample.")] = 4,
    half: Annotated[bool, typer.Option("--half", help="Save it in bfloat16.")] = False,
    override: Overrides = [],  # noqa: B006
) -> None:
    """Compute one expert's Fisher, for others to code with; save or publish it."""
    if output is None and push_to is None:
        raise InputError("say where the Fisher goes: --output FOLDER, --push-to REPO, or both")
    from coin_hf.recoding.expert_fisher import make_fisher, publish_fisher

    with tempfile.TemporaryDirectory() as folder:
        file = make_fisher(
            expert,
            output or Path(folder),
            datasets=dataset,
            like=like,
            per_expert=per_expert,
            seed=seed,
            split=split,
            fisher={"estimator": estimator, "probes": probes, "save": "half" if half else True},
            overrides=override,
            revision=revision,
            name=name,
            progress=True,
        )
        if not speaks():
            return
        if output is not None:
            print(file)
        if push_to is not None:
            print(publish_fisher(file, push_to, private=private))


def tune_betas(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder with Fishers.")],
    missing: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Probability that each expert is missing.")
    ],
    by: Annotated[str, typer.Option(help="Objective: error or agreement.")] = "error",
    as_json: AsJson = False,
) -> None:
    """Propose betas from how often each expert is missing, measured on the samples."""
    if by not in ("error", "agreement"):
        raise InputError(f"--by is 'error' or 'agreement', got '{by}'")
    from coin_hf.recoding.tune_betas import tune_betas as tune

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    found = tune(target, numbers(missing), by=by, progress=progress)  # type: ignore[arg-type]
    if as_json:
        print(plain_json(found.dump()))
        return
    print(f"{'':12} {'error':>12} {'agreement':>10}  betas")
    for title in ("recorded", "closed_form", "best"):
        one = getattr(found, title)
        betas = found.dump()[title]["betas"]
        print(f"{title:12} {one.error:12.5g} {one.agreement:10.4f}  {betas}")
    words = " ".join("--betas " + " ".join(f"{b:g}" for b in row) for row in found.best.betas)
    print(f"to use the best: coin-hf recode {target} {words} --output FOLDER", file=sys.stderr)

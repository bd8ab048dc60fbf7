"""Compare coders on the same experts, samples and test sets; finished rows are saved."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from coin_hf.comparison.statistics import Row, average_of, controls, summary
from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.data.samples import Samples
from coin_hf.encoding.context import EncodingContext, RunContext, Theta
from coin_hf.encoding.cost import machine, timed, watch
from coin_hf.encoding.encoder import calibrate_on, run_coder
from coin_hf.encoding.fishers import compute_fishers
from coin_hf.encoding.fitted_coder import check_coder
from coin_hf.encoding.inputs import draw, load_experts, open_tests
from coin_hf.encoding.pinning import resolve
from coin_hf.encoding.refinement import check_steps
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation.erasures import evaluate_erasures
from coin_hf.evaluation.methods import CONTROLS
from coin_hf.experts.expert import Expert
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import FisherBlock
from coin_hf.recipe.compare_blocks import Contender
from coin_hf.recipe.text_files import read_json
from coin_hf.records.coin import FORMAT
from coin_hf.repository.atomic import write_whole
from coin_hf.repository.locks import only_writer
from coin_hf.repository.provenance import environment
from coin_hf.repository.run_records import architecture, recorded_steps
from coin_hf.repository.work_folder import claim, first_difference

ROWS = "rows"
"""Folder of the finished rows, one file each."""
SHARED = ("experts", "datasets", "classes", "betas", "samples", "evaluation")
"""Recipe keys that every row depends on."""
OWN = {
    "coin": ("lam", "fisher", "race"),
    "task_arithmetic": ("task_arithmetic", "race"),
    "averaging": (),
}
"""Further keys that a coder's rows depend on; by default the block of its name."""


def compare(recipe: Recipe, *, progress: bool = False) -> dict[str, Any]:
    """Compare the recipe's contenders, on each of its seeds and numbers of samples.

    Every finished row is written to the recipe's output folder; a later call does not compute it
    again. Test sets are those of `samples.seed`, the same for all rows.

    Args:
        recipe: The recipe; its `output` is the folder.
        progress: Report rows and show bars on stderr, in the main process.

    Returns:
        The content of `result.json`: rows, their summary, controls, and what they are based on.

    Raises:
        InputError: If an expert, dataset or setting is not usable, or the folder is in use or
            holds the comparison of another recipe.
    """
    if recipe.output is None:
        raise InputError("a comparison needs a folder: add `output: FOLDER`, or -o output=FOLDER")
    run, folder = RunContext(progress=progress), Path(recipe.output).expanduser()
    recipe = resolve(recipe)
    experts = load_experts(recipe, run)
    test_sets = open_tests(recipe, experts, run)
    said = recipe.dump()
    with run.main_first():
        claim(folder, {key: said[key] for key in SHARED if key in said}, "choose another `output`")
        (folder / ROWS).mkdir(exist_ok=True)
    with only_writer(folder) if run.processes.rank == 0 else nullcontext():
        return _compared(recipe, experts, test_sets, folder, run)


def _compared(
    recipe: Recipe,
    experts: Sequence[Expert],
    test_sets: Sequence[LabelledRows[Any]],
    folder: Path,
    run: RunContext,
) -> dict[str, Any]:
    """Compute the rows that are not there yet, and build the result."""
    said = recipe.dump()
    rows = _kept(recipe, folder, run)
    contest = Contest(recipe, experts, test_sets, run)
    if len(rows) < len(list(_plan(recipe))):
        contest.check()
    for contender, per_expert, seed in _plan(recipe):
        name = _name(contender, per_expert, seed)
        if name in rows:
            continue
        rows[name] = contest.row(contender, per_expert, seed)
        if run.processes.rank == 0:
            kept = {"row": rows[name], "sha256": _hash(rows[name])}
            write_whole(folder / ROWS / name, json.dumps(kept, indent=2) + "\n")
            if run.progress:
                _tell(rows[name])
    ordered = [rows[_name(*entry)] for entry in _plan(recipe)]
    return {
        "format": FORMAT,
        "library": experts[0].library,
        "architecture": architecture(experts[0]),
        "num_classes": experts[0].num_classes,
        **{key: said[key] for key in SHARED if key in said},
        "summary": summary(ordered),
        "controls": controls(ordered[0]),
        "rows": ordered,
        "run": {**machine(run, experts), "versions": environment()},
    }


@dataclass(frozen=True, eq=False)
class Fishers:
    """The experts' Fishers on one draw of the samples, and their cost."""

    fishers: list[Theta] | None = None
    seconds: float = 0.0
    peak_memory: int | None = None


class Contest:
    """The state that all rows share: experts, test sets, and the experts' answers on them."""

    def __init__(
        self,
        recipe: Recipe,
        experts: Sequence[Expert],
        test_sets: Sequence[LabelledRows[Any]],
        run: RunContext,
    ) -> None:
        self.recipe, self.experts, self.test_sets = recipe, experts, test_sets
        self.run = run
        self.known: dict[tuple[int, int], Any] = {}
        self.drawn: tuple[tuple[int, int], Samples] | None = None
        self.fishers: dict[FisherBlock, Fishers] = {}

    def context(self, contender: Contender, per_expert: int, seed: int) -> EncodingContext:
        """Return the inputs of one row; the samples drawn last are kept."""
        samples = self.recipe.samples.model_copy(update={"per_expert": per_expert, "seed": seed})
        recipe = self.recipe.with_coder(contender).model_copy(update={"samples": samples})
        if self.drawn is None or self.drawn[0] != (per_expert, seed):
            drawn = draw(recipe, self.experts, self.run)
            self.drawn, self.fishers = ((per_expert, seed), drawn), {}
        return EncodingContext(self.run, recipe, self.experts, self.drawn[1])

    def shared(self, context: EncodingContext) -> Fishers:
        """Return the experts' Fishers for a row; rows on the same samples share them."""
        block = context.recipe.fisher
        if block not in self.fishers:
            seconds: dict[str, float] = {}
            with watch(self.run.device) as peak, timed(seconds, "fisher"):
                found = compute_fishers(context)
            self.fishers[block] = Fishers(found, seconds["fisher"], peak.bytes)
        return self.fishers[block]

    def check(self) -> None:
        """Check before the first row that every coder can work on every number of samples.

        Raises:
            InputError: If one cannot.
        """
        for contender in self.recipe.contenders:
            if contender.label in CONTROLS:
                raise InputError(
                    f"'{contender.label}' is the name of a control: give the entry another `name`"
                )
        for per_expert in sorted(set(_sizes(self.recipe)), reverse=True):
            for contender in self.recipe.contenders:
                context = self.context(contender, per_expert, self.recipe.compare.seeds[0])
                check_coder(context)
                check_steps(context)

    def row(self, contender: Contender, per_expert: int, seed: int) -> Row:
        """Encode and evaluate one row.

        Args:
            contender: The coder with its settings.
            per_expert: P'.
            seed: Seed of the samples' draw.

        Returns:
            The row, as plain data.
        """
        context = self.context(contender, per_expert, seed)
        shared = self.shared(context) if contender.coder == "coin" else Fishers()
        context = replace(context, fishers=shared.fishers)
        with watch(self.run.device) as peak:
            encoded = run_coder(context)
        losses = calibrate_on(context, encoded.coded).losses
        steps = {**encoded.seconds, "prepare": encoded.seconds["prepare"] + shared.seconds}
        peaks = [each for each in (peak.bytes, shared.peak_memory) if each is not None]
        erasures = evaluate_erasures(
            {expert.name: expert.model for expert in self.experts},
            {contender.label: [each.model for each in encoded.coded]},
            ErasureCode(self.recipe.coding_weights, losses=losses, labels=context.label_sets),
            self.test_sets,
            self.experts[0].preprocessing,
            settings=self.recipe.evaluation,
            seed=self.recipe.samples.seed,
            processes=self.run.processes,
            progress=self.run.progress,
            known=self.known,
        ).erasures
        singles = [erasure for erasure in erasures if not erasure.beside]
        scores = [erasure.scores[contender.label] for erasure in singles]
        return {
            "name": contender.label,
            "coder": contender.coder,
            "per_expert": per_expert,
            "seed": seed,
            "samples": len(context.samples),
            "settings": _settings(self.recipe, contender),
            "value": encoded.value,
            "choice": None if encoded.choice is None else encoded.choice.dump(),
            "erasures": [erasure.dump() for erasure in erasures],
            "mean_nda": average_of([score.nda for score in scores]),
            "agreement": average_of([score.agreement for score in scores]),
            "coding_loss": average_of([score.coding_loss for score in scores]),
            "seconds": sum(value for step, value in steps.items() if step != "log"),
            "steps": steps,
            "peak_memory": max(peaks, default=None),
            "passes": encoded.passes.dump(),
            "history": encoded.history,
            "refinements": [each.dump() for each in encoded.refinements],
        }


def _sizes(recipe: Recipe) -> tuple[int, ...]:
    return recipe.compare.per_expert or (recipe.samples.per_expert,)


def _plan(recipe: Recipe) -> Iterator[tuple[Contender, int, int]]:
    """Yield every row to compute: seed by seed, so that a whole table is there early."""
    for per_expert in _sizes(recipe):
        for seed in recipe.compare.seeds:
            for contender in recipe.contenders:
                yield contender, per_expert, seed


def _name(contender: Contender, per_expert: int, seed: int) -> str:
    """Return a row's file name, escaped so that labels stay distinct."""
    plain = "".join(c if c.isalnum() or c == "_" else f"-{ord(c):x}-" for c in contender.label)
    return f"{plain}.{per_expert}.{seed}.json"


def _settings(recipe: Recipe, contender: Contender) -> dict[str, Any]:
    used = recipe.with_coder(contender)
    said = used.dump()
    keys = OWN.get(contender.coder, (contender.coder,))
    own = {key: said[key] for key in keys}
    return {"coder": contender.coder, **own, **recorded_steps(used)}


def _kept(recipe: Recipe, folder: Path, run: RunContext) -> dict[str, Row]:
    """Read the existing rows in the main process, and share them with all."""
    found: dict[str, Row] = {}
    if run.processes.rank == 0:
        for contender, per_expert, seed in _plan(recipe):
            name = _name(contender, per_expert, seed)
            file = folder / ROWS / name
            if file.exists():
                found[name] = _read(file)
                other = first_difference(found[name]["settings"], _settings(recipe, contender))
                if other is not None:
                    raise InputError(
                        f"{folder} holds rows of '{contender.label}' with other settings, "
                        f"'{other}' differs: restore it, or give the entry another `name`"
                    )
    (found,) = broadcast_object_list([found])
    return found


def _read(file: Path) -> Row:
    kept = read_json(file, str(file), "remove it, and resume")
    row: Row = kept.get("row", {})
    if kept.get("sha256") != _hash(row):
        raise InputError(f"{file} is not as it was written: remove it, and resume")
    return row


def _hash(row: Any) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _tell(row: Row) -> None:
    nda = "n/a" if row["mean_nda"] is None else f"{row['mean_nda']:.1f}"
    print(
        f"{row['name']}, P = {row['samples']}, seed {row['seed']}: NDA {nda} "
        f"({row['seconds']:.1f} s)",
        file=sys.stderr,
        flush=True,
    )

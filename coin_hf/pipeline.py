"""Encode a recipe into a coded ensemble, or evaluate one again."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from coin_hf.coders import average
from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.encoding.context import EncodingContext, RunContext
from coin_hf.encoding.cost import machine, timed
from coin_hf.encoding.defaults import settled
from coin_hf.encoding.encoder import calibrate_on, run_coder
from coin_hf.encoding.inputs import draw, draw_recorded, load_experts, open_tests
from coin_hf.encoding.pinning import pin_datasets, resolve
from coin_hf.encoding.tracking import logging_accelerator, numbers
from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation.erasures import Measurement, evaluate_erasures
from coin_hf.evaluation.methods import averaging_control
from coin_hf.experts.coded_model import build_all_coded
from coin_hf.experts.expert import Expert
from coin_hf.recipe import Recipe
from coin_hf.records.measurements import Calibration
from coin_hf.records.result import Run
from coin_hf.reports.result import Result
from coin_hf.repository.locks import only_writer
from coin_hf.repository.provenance import environment
from coin_hf.repository.run_records import coin_record, measured, result_record


def encode(
    recipe: Recipe,
    *,
    progress: bool = False,
    resume: str | Path | None = None,
    log_with: str | None = None,
    log_dir: str | Path = "logs",
) -> CodedEnsemble:
    """Encode a recipe's experts into coded models, and evaluate them.

    Recipe -> experts -> samples -> coder -> coded models -> every erasure decoded. Under
    `accelerate launch` or `torchrun` all passes are split among the processes; every process gets
    the same result.

    Args:
        recipe: What to encode.
        progress: Show bars on stderr, in the main process.
        resume: Folder for partial Fishers, created if needed: an interrupted run resumes from it,
            with a bit-identical result. It is not removed.
        log_with: A tracker of Accelerate (`tensorboard`, `wandb`, `trackio`, ..., or `all`) that
            logs distillation by epoch, and the mean NDA of each method at the end.
        log_dir: Folder for trackers that write files.

    Returns:
        The ensemble; its `.result` holds every number. Nothing is saved: see
        `CodedEnsemble.save_pretrained` and `push_to_hub`.

    Raises:
        InputError: If an expert, dataset or setting is not usable; raised before any computation.

    Example:
        ensemble = encode(Recipe.from_yaml("recipe.yaml"))
        print(ensemble.result.table())
        ensemble.save_pretrained("coded")
    """
    accelerator = logging_accelerator(log_with, log_dir, recipe.dump())
    run, seconds = RunContext(accelerator, progress=progress), dict[str, float]()
    recipe = resolve(recipe)
    with timed(seconds, "load"):
        experts = load_experts(recipe, run)
        samples = draw(recipe, experts, run)
        test_sets = open_tests(recipe, experts, run)
    recipe = settled(recipe, experts, samples)
    checkpoints = None if resume is None else Path(resume)
    context = EncodingContext(run, recipe, experts, samples, checkpoints)
    with only_writer(checkpoints) if checkpoints and not run.processes.rank else nullcontext():
        encoded = run_coder(context)
    with timed(seconds, "calibration"):
        calibration = calibrate_on(context, encoded.coded)
    code = ErasureCode(recipe.coding_weights, losses=calibration.losses, labels=context.label_sets)
    with timed(seconds, "evaluation"):
        measurement = _measure(
            recipe, encoded.coded, experts, test_sets, code, calibration.threshold, run
        )
    _warn_of_chance(measurement, test_sets)
    coin = coin_record(encoded.recipe, experts, samples, calibration)
    spent = Run(
        **machine(run, experts),
        seconds={**seconds, **encoded.seconds},
        **encoded.cost(),
        versions=environment(),
    )
    result = result_record(
        coin,
        experts,
        encoded.choice,
        measurement,
        spent,
        refinements=encoded.refinements,
        damaged=samples.damaged,
    )
    accelerator.log(numbers({"nda": result.mean_nda}))
    accelerator.end_training()
    kept = encoded.fishers if recipe.fisher.save else None
    return CodedEnsemble(encoded.coded, code, coin, result, experts, kept)


def evaluate(
    repo_or_path: str | Path,
    *,
    revision: str | None = None,
    overrides: Sequence[str] = (),
    progress: bool = False,
) -> Result:
    """Evaluate a coded repository again, on its recorded data or on other data.

    Args:
        repo_or_path: Folder or Hub id of a coded model.
        revision: Its revision on the Hub.
        overrides: `key.path=value` changes to `evaluation` and `datasets`; a dataset's revision
            is pinned again if its path changes.
        progress: Show bars on stderr, in the main process.

    Returns:
        The result, in the form of `result.json`, with the new measurements.

    Raises:
        InputError: If the repository, an expert or a dataset cannot be found or read, or an
            override changes another key.
    """
    run, seconds = RunContext(progress=progress), dict[str, float]()
    with run.main_first():
        ensemble = CodedEnsemble.from_pretrained(
            repo_or_path, revision, experts=True, device=run.device, on_disk=True
        )
    recipe = _with_other_data(ensemble.coin.recipe, overrides)
    experts = ensemble.experts or ()
    test_sets = open_tests(recipe, experts, run, drawn=ensemble.coin.recipe)
    calibration = ensemble.coin.calibration or _calibrate(ensemble, run)
    code = ErasureCode(ensemble.code.rows, losses=calibration.losses, labels=ensemble.code.labels)
    with timed(seconds, "evaluation"):
        measurement = _measure(
            recipe, ensemble.coded_models, experts, test_sets, code, calibration.threshold, run
        )
    _warn_of_chance(measurement, test_sets)
    changes = {
        "datasets": recipe.datasets,
        "evaluation": recipe.evaluation,
        **measured(measurement, _drawn_damaged(ensemble)),
        "calibration": calibration,
        "run": Run(**machine(run, experts), seconds=seconds, versions=environment()),
    }
    return ensemble.result.model_copy(update=changes)


def _warn_of_chance(measurement: Measurement, test_sets: Sequence[LabelledRows[Any]]) -> None:
    """Warn of experts that are no better than guessing on their own data."""
    singles = [erasure for erasure in measurement.erasures if not erasure.beside]
    for erasure, images in zip(singles, test_sets, strict=True):
        if erasure.expert_accuracy <= 1 / images.count_classes:
            warnings.warn(
                f"expert '{erasure.missing}' is right on {erasure.expert_accuracy:.0%} of its own "
                f"test data, at or below chance for {images.count_classes} classes: check that "
                f"dataset '{images.name}' is its own, and that both name or number their classes "
                "alike",
                stacklevel=3,
            )


def _with_other_data(recorded: Recipe, overrides: Sequence[str]) -> Recipe:
    """Apply overrides to a recorded recipe's data, and pin the datasets' revisions."""
    for override in overrides:
        if override.split(".")[0] not in ("evaluation", "datasets"):
            raise InputError(
                f"override '{override}' would change the coded model, which evaluating does not: "
                "change `evaluation` or `datasets`, or encode again"
            )
    changed = recorded.override(overrides)
    datasets = dict(changed.datasets)
    for key, block in changed.datasets.items():
        old = recorded.datasets.get(key, block)
        if block.path != old.path and block.revision == old.revision:
            datasets[key] = block.model_copy(update={"revision": None})
    return pin_datasets(changed.model_copy(update={"datasets": datasets}))


def _calibrate(ensemble: CodedEnsemble, run: RunContext) -> Calibration:
    """Calibrate a re-coded ensemble on the samples that the recipe draws."""
    experts = ensemble.experts or ()
    recipe = ensemble.coin.recipe  # whatever data it is measured on now
    samples = draw_recorded(recipe, ensemble.coin, experts, run)
    return calibrate_on(EncodingContext(run, recipe, experts, samples), ensemble.coded_models)


def _drawn_damaged(ensemble: CodedEnsemble) -> dict[str, int]:
    """Return the recorded numbers of damaged rows that were left out of the samples."""
    datasets = {key: ensemble.coin.datasets[key] for key in ensemble.coin.draws.values()}
    pools = {f"{key}:{block.split}" for key, block in datasets.items()}
    found = ensemble.result.damaged or {}
    return {place: count for place, count in found.items() if place in pools}


def _measure(
    recipe: Recipe,
    coded: Sequence[Expert],
    experts: Sequence[Expert],
    test_sets: Sequence[LabelledRows[Any]],
    code: ErasureCode,
    threshold: float,
    run: RunContext,
) -> Measurement:
    """Evaluate the coded models, plain averaging and the controls."""
    methods: dict[str, list[nn.Module]] = {recipe.coder: [each.model for each in coded]}
    control = averaging_control(recipe.coder, refined=bool(recipe.refine))
    if control is not None:
        thetas = [expert.parameters for expert in experts]
        averages = [average(thetas, betas=row) for row in code.rows]
        plain = build_all_coded(experts, averages, code.rows)
        methods[control] = [each.model for each in plain]
    return evaluate_erasures(
        {expert.name: expert.model for expert in experts},
        methods,
        code,
        test_sets,
        experts[0].preprocessing,
        settings=recipe.evaluation,
        seed=recipe.samples.seed,
        threshold=threshold,
        processes=run.processes,
        progress=run.progress,
    )

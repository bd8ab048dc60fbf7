"""The line from recipe to coded ensemble, readable top to bottom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from coin_hf.coders import average
from coin_hf.data.images import LabelledImages
from coin_hf.encoding.encoder import build_all, calibrate_on, code, timed
from coin_hf.encoding.fitted_coder import Task
from coin_hf.encoding.inputs import draw, load_experts, open_tests
from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure.code import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation.calibration import Calibration
from coin_hf.evaluation.erasures import Measurement, evaluate_erasures
from coin_hf.experts.expert import Expert
from coin_hf.hub.client import pin
from coin_hf.recipe.recipe import Contender, Recipe, TaskArithmeticBlock
from coin_hf.repository.records import coin_record, environment, measured, recipe_of, result_record


def resolve(recipe: Recipe) -> Recipe:
    """Pin every revision of a recipe.

    Args:
        recipe: A recipe.

    Returns:
        The same recipe with commit SHAs (`sha256:...` for folders) as revisions and the experts'
        names filled in.

    Raises:
        InputError: If a repository, revision or folder cannot be found.
    """
    experts = [
        expert.model_copy(
            update={"revision": pin(expert.model, expert.revision), "name": expert.label}
        )
        for expert in recipe.experts
    ]
    changes = {"experts": tuple(experts), **_pinned_foundation(recipe)}
    if recipe.compare.coders is not None:
        coders = [each.model_copy(update=_pinned_foundation(each)) for each in recipe.contenders]
        changes["compare"] = recipe.compare.model_copy(update={"coders": tuple(coders)})
    return _pin_datasets(recipe.model_copy(update=changes))


def _pinned_foundation(block: Recipe | Contender) -> dict[str, TaskArithmeticBlock]:
    given = block.task_arithmetic
    if given is None:
        return {}
    revision = pin(given.foundation, given.revision)
    return {"task_arithmetic": given.model_copy(update={"revision": revision})}


def encode(
    recipe: Recipe, *, progress: bool = False, resume: str | Path | None = None
) -> CodedEnsemble:
    """Make coded models from experts, and measure them.

    Recipe -> experts -> samples -> coder -> coded models -> every erasure decoded. Under
    `accelerate launch` or `torchrun` the coder's passes and all others are shared out among the
    processes; the result is the same in each.

    Args:
        recipe: What to encode.
        progress: Show bars on stderr, in the main process.
        resume: A folder for the partial Fishers, made if it is not there: a run that was stopped
            goes on from it, with the same result to the last bit. It is left for you to remove.

    Returns:
        The ensemble; its `.result` holds every number. Nothing else is written: see
        `CodedEnsemble.save_pretrained` and `push_to_hub`.

    Raises:
        InputError: If an expert, dataset or setting is not usable; before anything is computed.

    Example:
        ensemble = encode(Recipe.from_yaml("recipe.yaml"))
        print(ensemble.result["mean_nda"])
        ensemble.save_pretrained("coded")
    """
    accelerator, seconds = Accelerator(), dict[str, float]()
    recipe = resolve(recipe)
    with timed(seconds, "load"):
        experts = load_experts(recipe, accelerator)
        samples = draw(recipe, experts[0], accelerator)
        test_sets = open_tests(recipe, experts, accelerator)
    folder = None if resume is None else Path(resume)
    task = Task(recipe, experts, samples, accelerator, progress, folder)
    coding = code(task)
    with timed(seconds, "calibration"):
        calibration = calibrate_on(task, coding.coded)
    erasure_code = ErasureCode(recipe.coding_weights, losses=calibration.losses)
    with timed(seconds, "evaluation"):
        measurement = _evaluate(
            recipe,
            coding.coded,
            experts,
            test_sets,
            erasure_code,
            calibration.threshold,
            accelerator,
            progress,
        )
    record = coin_record(coding.recipe, experts, samples, calibration)
    run = {**machine(accelerator), "seconds": {**seconds, **coding.seconds}, **coding.cost()}
    refinements = [each.dump() for each in coding.refinements]
    choice = coding.dump_choice()
    result = result_record(record, experts, choice, measurement, run, refinements=refinements)
    kept = coding.fishers if recipe.fisher.save else None
    return CodedEnsemble(coding.coded, erasure_code, record, result, experts, kept)


def evaluate(
    repo_or_path: str | Path,
    *,
    revision: str | None = None,
    overrides: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a coded repository again, on the data it records or on other data.

    Args:
        repo_or_path: Folder or Hub id of a coded model.
        revision: Its revision on the Hub.
        overrides: `key.path=value` changes to `evaluation` and `datasets`, whose revisions are
            pinned again where their path changes.
        progress: Show bars on stderr, in the main process.

    Returns:
        Its result, as `result.json` holds it, with what was measured now.

    Raises:
        InputError: If it, an expert or a dataset cannot be found or read, or another key is to be
            changed.
    """
    accelerator, seconds = Accelerator(), dict[str, float]()
    with accelerator.main_process_first():
        ensemble = CodedEnsemble.from_pretrained(
            repo_or_path, revision, experts=True, device=accelerator.device
        )
    recipe = _with_other_data(recipe_of(ensemble.coin), overrides)
    experts = ensemble.experts or ()
    test_sets = open_tests(recipe, experts, accelerator)
    calibration = (
        ensemble.coin.get("calibration") or _calibrate(ensemble, recipe, accelerator).dump()
    )
    code = ErasureCode(ensemble.code.rows, losses=calibration["losses"])
    threshold = calibration["threshold"]
    with timed(seconds, "evaluation"):
        measurement = _evaluate(
            recipe,
            ensemble.coded_models,
            experts,
            test_sets,
            code,
            threshold,
            accelerator,
            progress,
        )
    said = recipe.dump()
    return {
        **ensemble.result,
        "datasets": said["datasets"],
        "evaluation": said["evaluation"],
        **measured(measurement),
        "calibration": calibration,
        "run": {**machine(accelerator), "seconds": seconds, "versions": environment()},
    }


def _with_other_data(recorded: Recipe, overrides: Sequence[str]) -> Recipe:
    """Change what a recorded recipe says of data, and pin the datasets' revisions."""
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
    return _pin_datasets(changed.model_copy(update={"datasets": datasets}))


def _pin_datasets(recipe: Recipe) -> Recipe:
    datasets = {
        key: block.model_copy(update={"revision": pin(block.path, block.revision, "dataset")})
        for key, block in recipe.datasets.items()
    }
    return recipe.model_copy(update={"datasets": datasets})


def _calibrate(ensemble: CodedEnsemble, recipe: Recipe, accelerator: Accelerator) -> Calibration:
    """Calibrate a re-coded ensemble on the samples its experts' Fishers were taken on."""
    experts = ensemble.experts or ()
    samples = draw(recipe, experts[0], accelerator)
    return calibrate_on(Task(recipe, experts, samples, accelerator), ensemble.coded_models)


def _evaluate(
    recipe: Recipe,
    coded: Sequence[Expert],
    experts: Sequence[Expert],
    test_sets: Sequence[LabelledImages],
    code: ErasureCode,
    threshold: float,
    accelerator: Accelerator,
    progress: bool,
) -> Measurement:
    """Measure the coded models, plain averaging beside them, and the controls."""
    thetas = [expert.parameters for expert in experts]
    averaged = build_all(experts, [average(thetas, betas=row) for row in code.rows], code.rows)
    return evaluate_erasures(
        {expert.name: expert.model for expert in experts},
        {
            recipe.coder: [each.model for each in coded],
            "averaging": [each.model for each in averaged],
        },
        code,
        test_sets,
        experts[0].preprocessing,
        batch_size=recipe.evaluation.batch_size,
        limit=recipe.evaluation.limit,
        seed=recipe.samples.seed,
        accelerator=accelerator,
        threshold=threshold,
        progress=progress,
    )


def machine(accelerator: Accelerator) -> dict[str, Any]:
    """Say on what a run is made."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "processes": accelerator.num_processes}

"""The line from recipe to coded ensemble, readable top to bottom."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from coin_hf.betas import Rows
from coin_hf.calibration import Calibration, calibrate
from coin_hf.coded import build_coded, load
from coin_hf.coders import average, average_buffers, fisher_average
from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation import Measurement, evaluate_erasures
from coin_hf.experts import Expert
from coin_hf.hub import pin
from coin_hf.images import LabelledImages
from coin_hf.outputs import logits_of
from coin_hf.preparation import compute_fishers, draw, load_experts, open_tests
from coin_hf.recipe import Recipe
from coin_hf.records import coin_record, environment, measured, recipe_of, result_record
from coin_hf.samples import Samples
from coin_hf.selection import LAM_CANDIDATES, choose


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
    return _pin_datasets(recipe.model_copy(update={"experts": tuple(experts)}))


def encode(
    recipe: Recipe, *, progress: bool = False, resume: str | Path | None = None
) -> CodedEnsemble:
    """Make coded models from experts, and measure them.

    Recipe -> experts -> samples -> Fisher -> lambda -> coded models -> every erasure decoded. Under
    `accelerate launch` or `torchrun` the Fisher and all forward passes are shared out among the
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
    rows = ErasureCode(recipe.coding_weights).rows
    with _timed(seconds, "load"):
        experts = load_experts(recipe, accelerator)
        samples = draw(recipe, experts[0], accelerator)
        test_sets = open_tests(recipe, experts, accelerator)
    fitting, choosing = samples.split(recipe.samples.held_out)
    with _timed(seconds, "fisher"):
        folder = None if resume is None else Path(resume)
        fishers = compute_fishers(recipe, experts, fitting, accelerator, progress, folder)
    thetas = [expert.parameters for expert in experts]

    def coin(lam: float) -> list[dict[str, Tensor]]:
        return [fisher_average(thetas, fishers, betas=row, lam=lam) for row in rows]

    coded = _build(experts, coin(LAM_CANDIDATES[0]), rows)
    choice = None
    with _timed(seconds, "choice"):
        logits = _on_samples(choosing, recipe, accelerator)
        expert_logits = [logits(expert.model) for expert in experts]
        if recipe.lam == "auto":

            def coded_logits(lam: float) -> list[Tensor]:
                _load_all(coded, coin(lam))
                return [logits(each.model) for each in coded]

            own, code = _own(recipe, choosing), ErasureCode(rows)
            choice = choose(LAM_CANDIDATES, coded_logits, expert_logits, choosing, code, own=own)
        lam = choice.value if choice else float(recipe.lam)
        _load_all(coded, coin(lam))
        finished = [logits(each.model) for each in coded]
        calibration = calibrate(expert_logits, finished, ErasureCode(rows))
    code = ErasureCode(rows, losses=calibration.losses)
    with _timed(seconds, "evaluation"):
        measurement = _evaluate(
            recipe, coded, experts, test_sets, code, calibration.threshold, accelerator, progress
        )
    record = coin_record(recipe, experts, samples, lam, calibration)
    run = {**_machine(accelerator), "seconds": seconds}
    result = result_record(record, experts, choice, measurement, run)
    kept = fishers if recipe.fisher.save else None
    return CodedEnsemble(coded, code, record, result, experts, kept)


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
    with _timed(seconds, "evaluation"):
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
        "run": {**_machine(accelerator), "seconds": seconds, "versions": environment()},
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


def _build(
    experts: Sequence[Expert], thetas: Sequence[dict[str, Tensor]], rows: Rows
) -> list[Expert]:
    """Make the coded networks from their parameters; each row averages the buffers."""
    buffers = [expert.buffers for expert in experts]
    return [
        build_coded(experts, theta, average_buffers(buffers, betas=row), number=c)
        for c, (theta, row) in enumerate(zip(thetas, rows, strict=True))
    ]


def _load_all(coded: Sequence[Expert], thetas: Sequence[dict[str, Tensor]]) -> None:
    for each, theta in zip(coded, thetas, strict=True):
        load(each.model, theta, {})


def _on_samples(
    samples: Samples, recipe: Recipe, accelerator: Accelerator
) -> Callable[[nn.Module], Tensor]:
    """Return what gives a network's logits (P, K) on the samples."""

    def logits(model: nn.Module) -> Tensor:
        inputs = samples.inputs.to(next(model.parameters()).dtype)
        batch_size = recipe.evaluation.batch_size
        return logits_of(model, inputs, batch_size=batch_size, accelerator=accelerator)

    return logits


def _own(recipe: Recipe, samples: Samples) -> list[Tensor]:
    """For each expert mark the samples it is judged on: its own draw, or what is nearest to it."""
    names, keys = list(recipe.draws), list(recipe.draws.values())
    marks = []
    for block in recipe.experts:
        draws = [k for k, name in enumerate(names) if name == block.label]
        draws = draws or [k for k, key in enumerate(keys) if key == block.dataset]
        marks.append(torch.isin(samples.sources, torch.tensor(draws or range(len(names)))))
    return marks


def _calibrate(ensemble: CodedEnsemble, recipe: Recipe, accelerator: Accelerator) -> Calibration:
    """Calibrate a re-coded ensemble on the samples its experts' Fishers were taken on."""
    experts = ensemble.experts or ()
    samples = draw(recipe, experts[0], accelerator).split(recipe.samples.held_out)[1]
    logits = _on_samples(samples, recipe, accelerator)
    return calibrate(
        [logits(expert.model) for expert in experts],
        [logits(coded.model) for coded in ensemble.coded_models],
        ensemble.code,
    )


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
    averaged = _build(experts, [average(thetas, betas=row) for row in code.rows], code.rows)
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


def _machine(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "processes": accelerator.num_processes}


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Record the wall time of a step."""
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 2)

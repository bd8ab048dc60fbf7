"""The line from recipe to coded ensemble, readable top to bottom."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from coin_hf.alignment import check_alignment, differing_statistics
from coin_hf.coded import build_coded, load
from coin_hf.coders import average, average_buffers, fisher_average
from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure import ErasureCode
from coin_hf.errors import InputError
from coin_hf.evaluation import Erasure, evaluate_erasures
from coin_hf.experts import Expert, load_expert
from coin_hf.fisher import diagonal_fisher, resolve_estimator
from coin_hf.hub import pin
from coin_hf.images import LabelledImages
from coin_hf.outputs import logits_of
from coin_hf.recipe import Recipe
from coin_hf.records import coin_record, environment, measured, recipe_of, result_record
from coin_hf.samples import Samples, draw_samples
from coin_hf.selection import LAM_CANDIDATES, Choice, choose
from coin_hf.work import WorkFolder


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
    """Make a coded model from experts, and measure it.

    Recipe -> experts -> samples -> Fisher -> lambda -> coded model -> every erasure decoded. Under
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
    code = ErasureCode(recipe.coding_weights)
    with _timed(seconds, "load"):
        experts = _load_experts(recipe, accelerator)
        samples = _draw(recipe, experts, accelerator)
        test_sets = _open(recipe, experts, accelerator, recipe.evaluation.split)
    fitting, choosing = samples.split(recipe.samples.held_out)
    with _timed(seconds, "fisher"):
        folder = None if resume is None else Path(resume)
        fishers = _fishers(recipe, experts, fitting, accelerator, progress, folder)
    thetas = [expert.parameters for expert in experts]
    buffers = average_buffers([expert.buffers for expert in experts], betas=code.betas)

    def coin(lam: float) -> dict[str, Tensor]:
        return fisher_average(thetas, fishers, betas=code.betas, lam=lam)

    coded = build_coded(experts, coin(LAM_CANDIDATES[0]), buffers)
    choice = None
    if recipe.lam == "auto":
        with _timed(seconds, "choice"):
            choice = _choose_lam(coin, coded, experts, choosing, recipe, code, accelerator)
    lam = choice.value if choice else float(recipe.lam)
    load(coded.model, coin(lam), buffers)
    with _timed(seconds, "evaluation"):
        erasures = _evaluate(recipe, coded, experts, test_sets, code, accelerator, progress)
    record = coin_record(recipe, experts, samples, lam)
    run = {**_machine(accelerator), "seconds": seconds}
    result = result_record(record, experts, choice, erasures, run)
    return CodedEnsemble(coded, code, record, result, experts)


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
    test_sets = _open(recipe, experts, accelerator, recipe.evaluation.split)
    with _timed(seconds, "evaluation"):
        erasures = _evaluate(
            recipe, ensemble.coded, experts, test_sets, ensemble.code, accelerator, progress
        )
    said = recipe.dump()
    return {
        **ensemble.result,
        "datasets": said["datasets"],
        "evaluation": said["evaluation"],
        **measured(erasures),
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


def _load_experts(recipe: Recipe, accelerator: Accelerator) -> list[Expert]:
    """Load and compare the experts; the main process downloads first."""
    with accelerator.main_process_first():
        experts = [
            load_expert(
                block.model,
                revision=block.revision,
                library=block.library,
                device=accelerator.device,
                name=block.label,
            )
            for block in recipe.experts
        ]
    check_alignment(experts)
    differing = differing_statistics(experts)
    if differing:
        warnings.warn(
            f"the experts' statistics differ in {len(differing)} buffers (first: {differing[0]}) "
            "and are averaged, which costs accuracy: freeze BatchNorm when fine-tuning, as "
            "arXiv:2409.01420 does",
            stacklevel=3,
        )
    return experts


def _open(
    recipe: Recipe, experts: Sequence[Expert], accelerator: Accelerator, split: str | None
) -> list[LabelledImages]:
    """Open each expert's dataset: the given split, or the one its samples come from."""
    with accelerator.main_process_first():
        opened = [
            LabelledImages(
                block.dataset,
                recipe.datasets[block.dataset],
                split or recipe.datasets[block.dataset].split,
                expert.num_classes,
            )
            for block, expert in zip(recipe.experts, experts, strict=True)
        ]
    if split is not None:
        for images in opened:
            images.check_usable_for_tests()
    return opened


def _draw(recipe: Recipe, experts: Sequence[Expert], accelerator: Accelerator) -> Samples:
    return draw_samples(
        _open(recipe, experts, accelerator, None),
        experts[0].preprocessing,
        per_expert=recipe.samples.per_expert,
        seed=recipe.samples.seed,
    )


def _fishers(
    recipe: Recipe,
    experts: Sequence[Expert],
    samples: Samples,
    accelerator: Accelerator,
    progress: bool,
    resume: Path | None,
) -> list[dict[str, Tensor]]:
    """Every expert's Fisher on all samples."""
    wanted, classes = recipe.fisher, experts[0].num_classes
    if wanted.estimator == "auto" and resolve_estimator(classes) == "probe":
        warnings.warn(
            f"the Fisher of {classes} classes is estimated with {wanted.probes} random probes for "
            "each sample: set fisher.probes for more, or fisher.estimator to exact",
            stacklevel=3,
        )
    work = None
    if resume is not None:
        with accelerator.main_process_first():
            work = WorkFolder(resume, recipe.dump())
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    fishers = []
    for i, expert in enumerate(experts):
        try:
            fisher = diagonal_fisher(
                expert.model,
                samples.inputs.to(next(expert.model.parameters()).dtype),
                estimator=wanted.estimator,
                probes=wanted.probes,
                batch_size=wanted.batch_size,
                seed=recipe.samples.seed,
                accelerator=accelerator,
                progress=progress,
                checkpoint=None if work is None else work.fisher(i, **place),
            )
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"expert '{expert.name}': {error}") from error
        fishers.append(fisher)
    return fishers


def _choose_lam(
    coin: Callable[[float], dict[str, Tensor]],
    coded: Expert,
    experts: Sequence[Expert],
    samples: Samples,
    recipe: Recipe,
    code: ErasureCode,
    accelerator: Accelerator,
) -> Choice:
    """Try every lambda on the samples: one forward for each, the experts' logits only once."""

    def logits(model: nn.Module) -> Tensor:
        inputs = samples.inputs.to(next(model.parameters()).dtype)
        batch_size = recipe.evaluation.batch_size
        return logits_of(model, inputs, batch_size=batch_size, accelerator=accelerator)

    def coded_logits(lam: float) -> Tensor:
        load(coded.model, coin(lam), {})
        return logits(coded.model)

    expert_logits = [logits(expert.model) for expert in experts]
    return choose(LAM_CANDIDATES, coded_logits, expert_logits, samples, code)


def _evaluate(
    recipe: Recipe,
    coded: Expert,
    experts: Sequence[Expert],
    test_sets: Sequence[LabelledImages],
    code: ErasureCode,
    accelerator: Accelerator,
    progress: bool,
) -> list[Erasure]:
    """Measure the coded model, plain averaging beside it, and the controls."""
    theta = average([expert.parameters for expert in experts], betas=code.betas)
    buffers = average_buffers([expert.buffers for expert in experts], betas=code.betas)
    averaged = build_coded(experts, theta, buffers)
    return evaluate_erasures(
        {expert.name: expert.model for expert in experts},
        {recipe.coder: coded.model, "averaging": averaged.model},
        code,
        test_sets,
        experts[0].preprocessing,
        batch_size=recipe.evaluation.batch_size,
        limit=recipe.evaluation.limit,
        seed=recipe.samples.seed,
        accelerator=accelerator,
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

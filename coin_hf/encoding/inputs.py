"""What coding needs: experts loaded and compared, data opened, samples drawn, Fishers computed."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from coin_hf.data.images import LabelledImages
from coin_hf.data.samples import Samples, draw_samples
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment, differing_statistics
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.fisher import Checkpoint, diagonal_fisher, resolve_estimator
from coin_hf.recipe.recipe import DatasetBlock, FisherRecipe, Recipe
from coin_hf.repository.fisher_files import rounded
from coin_hf.repository.work_folder import WorkFolder


def load_experts(recipe: Recipe, accelerator: Accelerator) -> list[Expert]:
    """Load and compare the experts; the main process downloads first.

    Args:
        recipe: The recipe, its revisions pinned.
        accelerator: The processes.

    Returns:
        The experts, in order, on this process's device.

    Raises:
        InputError: If one cannot be found or read, or they do not fit together.
    """
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
    keys: Mapping[str, str],
    datasets: Mapping[str, DatasetBlock],
    split: str | None,
    num_classes: int,
) -> list[LabelledImages]:
    """Open datasets by their keys: the given split, or the one their samples come from."""
    return [
        LabelledImages(key, datasets[key], split or datasets[key].split, num_classes)
        for key in keys.values()
    ]


def open_tests(
    recipe: Recipe, experts: Sequence[Expert], accelerator: Accelerator
) -> list[LabelledImages]:
    """Open each expert's test set.

    Args:
        recipe: The recipe, its revisions pinned.
        experts: The experts, in order.
        accelerator: The processes; the main one downloads first.

    Returns:
        One for each expert.

    Raises:
        InputError: If a dataset cannot be read, or no accuracy can be measured on it.
    """
    keys = {block.label: block.dataset for block in recipe.experts}
    with accelerator.main_process_first():
        opened = _open(keys, recipe.datasets, recipe.evaluation.split, experts[0].num_classes)
    for images in opened:
        images.check_usable_for_tests()
    return opened


def draw(recipe: Recipe | FisherRecipe, expert: Expert, accelerator: Accelerator) -> Samples:
    """Draw the samples of a recipe.

    Args:
        recipe: The recipe, its revisions pinned.
        expert: Any of the experts, for their common preprocessing and number of classes.
        accelerator: The processes; the main one downloads first.

    Returns:
        The samples, the same in every process.

    Raises:
        InputError: If a dataset cannot be read or has too few rows.
    """
    with accelerator.main_process_first():
        opened = _open(recipe.draws, recipe.datasets, None, expert.num_classes)
    return draw_samples(
        opened,
        expert.preprocessing,
        per_expert=recipe.samples.per_expert,
        seed=recipe.samples.seed,
    )


def compute_fisher(
    recipe: Recipe | FisherRecipe,
    expert: Expert,
    samples: Samples,
    accelerator: Accelerator,
    progress: bool,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Tensor]:
    """Compute one expert's Fisher on all samples, as the recipe says, in the precision it saves.

    Args:
        recipe: The recipe.
        expert: The expert.
        samples: The samples.
        accelerator: The processes.
        progress: Show a bar on stderr, in the main process.
        checkpoint: Where partial sums are kept.

    Returns:
        The diagonal Fisher by parameter name.

    Raises:
        InputError: If the expert cannot be differentiated.
    """
    wanted = recipe.fisher
    try:
        found = diagonal_fisher(
            expert.model,
            samples.inputs.to(next(expert.model.parameters()).dtype),
            estimator=wanted.estimator,
            probes=wanted.probes,
            batch_size=wanted.batch_size,
            seed=recipe.samples.seed,
            accelerator=accelerator,
            progress=progress,
            checkpoint=checkpoint,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"expert '{expert.name}': {error}") from error
    return rounded(found, wanted.save)


def compute_fishers(
    recipe: Recipe,
    experts: Sequence[Expert],
    samples: Samples,
    accelerator: Accelerator,
    progress: bool,
    resume: Path | None,
) -> list[dict[str, Tensor]]:
    """Compute every expert's Fisher on all samples.

    Args:
        recipe: The recipe, its revisions pinned.
        experts: The experts, in order.
        samples: The samples.
        accelerator: The processes.
        progress: Show a bar on stderr, in the main process.
        resume: A folder for partial sums, where a run that was stopped goes on.

    Returns:
        The diagonal Fishers by parameter name, in order.

    Raises:
        InputError: If an expert cannot be differentiated, or the folder is of another recipe.
    """
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
        checkpoint = None if work is None else work.fisher(i, **place)
        found = compute_fisher(recipe, expert, samples, accelerator, progress, checkpoint)
        fishers.append(found)
    return fishers

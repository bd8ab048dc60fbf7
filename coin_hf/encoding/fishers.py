"""Compute the experts' Fishers on a recipe's samples."""

import warnings

from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.encoding.context import EncodingContext, RunContext, Theta
from coin_hf.encoding.fisher_checkpoint import FisherCheckpoints
from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.experts.on_disk import mapped
from coin_hf.fisher import Checkpoint, diagonal_fisher, resolve_estimator
from coin_hf.networks.inputs import cast
from coin_hf.recipe import Recipe
from coin_hf.recipe.fisher_recipe import FisherRecipe
from coin_hf.repository.fisher_files import rounded

MEASURED = 10
"""The most classes of which docs/pages/experiments/probes.md tells what probes cost."""


def compute_fisher(
    recipe: Recipe | FisherRecipe,
    expert: Expert,
    samples: Samples,
    run: RunContext,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Tensor]:
    """Compute one expert's Fisher on all samples, in the precision that the recipe saves.

    Args:
        recipe: The recipe.
        expert: The expert.
        samples: The samples.
        run: The run.
        checkpoint: The checkpoint for partial sums.

    Returns:
        The diagonal Fisher by parameter name.

    Raises:
        InputError: If the expert cannot be differentiated.
    """
    wanted = recipe.fisher
    try:
        found = diagonal_fisher(
            expert.model,
            cast(samples.inputs, next(expert.model.parameters()).dtype),
            estimator=wanted.estimator,
            probes=wanted.probes,
            batch_size=wanted.batch_size,
            seed=recipe.samples.seed,
            accelerator=run.accelerator,
            progress=run.progress,
            checkpoint=checkpoint,
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"expert '{expert.name}': {error}") from error
    return rounded(found, wanted.save)


def compute_fishers(context: EncodingContext) -> list[Theta]:
    """Compute every expert's Fisher on the samples to fit on, and keep it in a mapped file.

    Args:
        context: The encoding's inputs; a stopped run resumes from its checkpoints.

    Returns:
        The diagonal Fishers by parameter name, in the experts' order.

    Raises:
        InputError: If an expert cannot be differentiated, or the checkpoints belong to another
            recipe.
    """
    wanted, classes = context.recipe.fisher, context.experts[0].num_classes
    probes = wanted.estimator == "auto" and resolve_estimator(classes) == "probe"
    if probes and classes > MEASURED:
        warnings.warn(
            f"the Fisher of {classes} classes is estimated with {wanted.probes} random probes for "
            f"each sample (what that costs is known up to {MEASURED} classes): set fisher.probes "
            "for more, or fisher.estimator to exact",
            stacklevel=3,
        )
    kept = None
    if context.checkpoints is not None:
        with context.run.main_first():
            kept = FisherCheckpoints(context.checkpoints, context.recipe.dump())
    processes = context.run.processes
    fishers = []
    for i, expert in enumerate(context.experts):
        checkpoint = (
            None if kept is None else kept.fisher(i, rank=processes.rank, world=processes.world)
        )
        found = compute_fisher(context.recipe, expert, context.parts[0], context.run, checkpoint)
        fishers.append(mapped(found, f"the Fisher of expert '{expert.name}'"))
    return fishers

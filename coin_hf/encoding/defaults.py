"""Settle what a recipe leaves open until experts and samples are known: its steps of `refine`."""

from collections.abc import Sequence

from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.experts.expert import Expert
from coin_hf.networks.inputs import take
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import AugmentBlock, RefineBlock
from coin_hf.refiners import Unsuitable, find_maps

ENOUGH = 100
"""Samples from which `refine: auto` refines: with fewer, NDA can fall where the coding loss does
not (Figure 2b in docs/pages/experiments/offline.md)."""


def settled(recipe: Recipe, experts: Sequence[Expert], samples: Samples) -> Recipe:
    """Replace `refine: auto` by steps.

    `layerwise` behind COIN and averaging, with `augment`'s four copies of each image, where there
    are at least 100 samples and the networks have maps to refit; else none.

    Args:
        recipe: The recipe.
        experts: Its experts.
        samples: Its samples.

    Returns:
        The recipe, with steps; what it says itself stays.
    """
    if recipe.refine is not None:
        return recipe
    if not _refines(recipe, experts, samples):
        return recipe.model_copy(update={"refine": ()})
    augment = recipe.augment
    if augment is None and isinstance(samples.inputs, Tensor):
        augment = AugmentBlock()
    return recipe.model_copy(
        update={"refine": (RefineBlock(step="layerwise"),), "augment": augment}
    )


def _refines(recipe: Recipe, experts: Sequence[Expert], samples: Samples) -> bool:
    if recipe.coder not in ("coin", "averaging") or len(samples) < ENOUGH:
        return False
    try:
        find_maps(experts[0].model, take(samples.inputs, slice(0, 1)))
    except Unsuitable:
        return False
    return True

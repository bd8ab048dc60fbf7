"""Pin every repository and dataset of a recipe to a commit, or a folder to its content."""

from typing import TypeVar

from coin_hf.experts.adapter_base import base_of
from coin_hf.experts.adapter_config import is_adapter
from coin_hf.hub.client import fetch_file, pin
from coin_hf.hub.layout import ADAPTER_CONFIG
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import ExpertBlock, TaskArithmeticBlock
from coin_hf.recipe.compare_blocks import Contender
from coin_hf.recipe.fisher_recipe import FisherRecipe

AnyRecipe = TypeVar("AnyRecipe", Recipe, FisherRecipe)


def resolve(recipe: Recipe) -> Recipe:
    """Pin every revision of a recipe.

    Args:
        recipe: A recipe.

    Returns:
        The recipe with commit SHAs in place of branches and tags, and names filled in.

    Raises:
        InputError: If a repository, revision or folder cannot be found.
    """
    changes = _pinned_foundation(recipe)
    if recipe.compare.coders is not None:
        coders = [each.model_copy(update=_pinned_foundation(each)) for each in recipe.contenders]
        changes["compare"] = recipe.compare.model_copy(update={"coders": tuple(coders)})
    return pin_datasets(pin_experts(recipe.model_copy(update=changes)))


def pin_experts(recipe: Recipe) -> Recipe:
    """Pin the experts' revisions and fill in their names.

    Args:
        recipe: A recipe.

    Returns:
        The changed recipe.

    Raises:
        InputError: If a repository, revision or folder cannot be found.
    """
    return recipe.model_copy(update={"experts": tuple(map(_pinned_expert, recipe.experts))})


def pin_datasets(recipe: AnyRecipe, *, trust_pinned: bool = False) -> AnyRecipe:
    """Pin the datasets' revisions.

    Args:
        recipe: A recipe.
        trust_pinned: Keep a given revision unchecked: no data will be read.

    Returns:
        The changed recipe.

    Raises:
        InputError: If a dataset or revision cannot be found.
    """
    datasets = {
        key: block
        if trust_pinned and block.revision
        else block.model_copy(update={"revision": pin(block.path, block.revision, "dataset")})
        for key, block in recipe.datasets.items()
    }
    return recipe.model_copy(update={"datasets": datasets})


def _pinned_expert(block: ExpertBlock) -> ExpertBlock:
    """Pin an expert and, if it is an adapter, its base."""
    revision = pin(block.model, block.revision)
    changes = {"revision": revision, "name": block.label}
    config = fetch_file(block.model, revision, ADAPTER_CONFIG)
    if config is not None and is_adapter(config.parent):
        base = base_of(config.parent, block.model, block.label, block.base, block.base_revision)
        changes |= {"base": base.model, "base_revision": base.revision}
    return block.model_copy(update=changes)


def _pinned_foundation(block: Recipe | Contender) -> dict[str, object]:
    given: TaskArithmeticBlock | None = block.task_arithmetic
    if given is None:
        return {}
    revision = pin(given.foundation, given.revision)
    return {"task_arithmetic": given.model_copy(update={"revision": revision})}

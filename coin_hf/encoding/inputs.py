"""Load and check a recipe's experts, open its test sets, draw its samples."""

import warnings
from collections.abc import Mapping, Sequence

from coin_hf.data.images import LabelledImages
from coin_hf.data.samples import Samples, draw_samples
from coin_hf.encoding.context import RunContext
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment, differing_statistics
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.recipe import Recipe
from coin_hf.recipe.fisher_recipe import FisherRecipe
from coin_hf.records.coin import CoinRecord


def load_experts(recipe: Recipe, run: RunContext) -> list[Expert]:
    """Load and check the experts; the main process downloads first.

    Args:
        recipe: The recipe, with revisions pinned.
        run: The run.

    Returns:
        The experts, in order, on this process's device.

    Raises:
        InputError: If one cannot be found or read, or they cannot be coded together.
    """
    with run.main_first():
        experts = [
            load_expert(
                block.model,
                revision=block.revision,
                library=block.library,
                device=run.device,
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


def open_tests(recipe: Recipe, experts: Sequence[Expert], run: RunContext) -> list[LabelledImages]:
    """Open each expert's test set.

    Args:
        recipe: The recipe, with revisions pinned.
        experts: The experts, in order.
        run: The run; its main process downloads first.

    Returns:
        One for each expert.

    Raises:
        InputError: If a dataset cannot be read, or no accuracy can be measured on it.
    """
    keys = {block.label: block.dataset for block in recipe.experts}
    opened = _open(recipe, keys, recipe.evaluation.split, experts[0].num_classes, run)
    for images in opened:
        images.check_usable_for_tests()
    return opened


def draw(recipe: Recipe | FisherRecipe, expert: Expert, run: RunContext) -> Samples:
    """Draw the samples of a recipe.

    Args:
        recipe: The recipe, with revisions pinned.
        expert: Any of the experts, for their common preprocessing and number of classes.
        run: The run; its main process downloads first.

    Returns:
        The samples, the same in every process.

    Raises:
        InputError: If a dataset cannot be read or has too few rows.
    """
    opened = _open(recipe, recipe.draws, None, expert.num_classes, run)
    return draw_samples(
        opened,
        expert.preprocessing,
        per_expert=recipe.samples.per_expert,
        seed=recipe.samples.seed,
    )


def draw_recorded(recipe: Recipe, coin: CoinRecord, expert: Expert, run: RunContext) -> Samples:
    """Draw the samples of a coded repository again.

    Args:
        recipe: A recipe whose draws are the repository's.
        coin: The repository's record.
        expert: Any of the experts.
        run: Where the run computes; the main process downloads first.

    Returns:
        The samples, the same in every process.

    Raises:
        InputError: If the datasets no longer hold the recorded rows.
    """
    samples = draw(recipe, expert, run)
    if [list(rows) for rows in samples.rows] != list(coin.samples.rows.values()):
        raise InputError(
            "the datasets no longer give the samples that the coded model records: restore their "
            "revisions, or encode from a recipe"
        )
    return samples


def _open(
    recipe: Recipe | FisherRecipe,
    keys: Mapping[str, str],
    split: str | None,
    num_classes: int,
    run: RunContext,
) -> list[LabelledImages]:
    """Open datasets by their keys: the given split, or the one their samples come from."""
    with run.main_first():
        return [
            LabelledImages(
                key,
                recipe.datasets[key],
                split or recipe.datasets[key].split,
                num_classes,
                run.datasets,
            )
            for key in keys.values()
        ]

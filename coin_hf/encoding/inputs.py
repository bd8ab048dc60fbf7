"""Load and check a recipe's experts, open its test sets, draw its samples."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from coin_hf.data.images import LabelledImages
from coin_hf.data.labelled_rows import LabelledRows
from coin_hf.data.labels import Owner
from coin_hf.data.opening import source
from coin_hf.data.samples import Samples, draw_samples
from coin_hf.data.texts import open_rows
from coin_hf.encoding.context import RunContext
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment, differing_statistics
from coin_hf.experts.classes import in_common_rows, with_labels
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.on_disk import keep_on_disk
from coin_hf.experts.one_dtype import cast_expert, common_dtype
from coin_hf.experts.trial import check_runs, makes_one_shape
from coin_hf.recipe import Recipe
from coin_hf.recipe.fisher_recipe import FisherRecipe
from coin_hf.records.coin import CoinRecord


def load_experts(recipe: Recipe, run: RunContext) -> list[Expert]:
    """Load and check the experts, one after the other; the main process downloads first.

    On the CPU their weights are mapped temporary files, so that N experts take the memory of the
    one that runs.

    Args:
        recipe: The recipe, with revisions pinned.
        run: The run.

    Returns:
        The experts, in order, on this process's device.

    Raises:
        InputError: If one cannot be found or read, or they cannot be coded together.
    """
    loaded = []
    with run.main_first():
        for block in recipe.experts:
            expert = load_expert(
                block.model,
                revision=block.revision,
                library=block.library,
                device=run.device,
                name=block.label,
                base=block.base,
                base_revision=block.base_revision,
            )
            keep_on_disk(expert)
            loaded.append(expert)
    dtype = common_dtype(loaded, recipe.dtype)
    for expert in loaded:
        if cast_expert(expert, dtype):
            keep_on_disk(expert)
        check_runs(expert)
    blocks = zip(loaded, recipe.experts, strict=True)
    loaded = [with_labels(expert, block.labels) for expert, block in blocks]
    experts = in_common_rows(loaded, recipe.classes)
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


def open_tests(
    recipe: Recipe, experts: Sequence[Expert], run: RunContext, drawn: Recipe | None = None
) -> list[LabelledRows[Any]]:
    """Open each expert's test set.

    Args:
        recipe: The recipe, with revisions pinned.
        experts: The experts, in order.
        run: The run; its main process downloads first.
        drawn: The recipe by which samples are drawn; by default this one.

    Returns:
        One for each expert.

    Raises:
        InputError: If a dataset cannot be read, no accuracy can be measured on it, or samples may
            be drawn from the same rows.
    """
    keys = {block.label: block.dataset for block in recipe.experts}
    opened = _open(recipe, keys, recipe.evaluation.split, experts, run)
    drawn, sources = drawn or recipe, {images.source for images in opened}
    shared = {name: k for name, k in drawn.draws.items() if source(drawn.datasets[k]) in sources}
    pools = _open(drawn, shared, None, experts, run)
    fixed = makes_one_shape(experts[0].preprocessing)
    for images in opened:
        images.check_usable_for_tests()
        if isinstance(images, LabelledImages) and not fixed:
            images.check_one_shape(experts[0].preprocessing)
            check_runs(experts[0], images.draw(1, seed=(0,))[0].image)
        for pool in pools:
            count = images.shared_rows(pool)
            if count:
                raise InputError(
                    f"{count} rows of dataset '{images.name}' are both test data (split "
                    f"'{images.split}') and rows that samples are drawn from (split "
                    f"'{pool.split}'): choose splits that do not overlap"
                )
    return opened


def draw(recipe: Recipe | FisherRecipe, experts: Sequence[Expert], run: RunContext) -> Samples:
    """Draw the samples of a recipe.

    Args:
        recipe: The recipe, with revisions pinned.
        experts: The experts, in order, or one of them where labels do not matter.
        run: The run; its main process downloads first.

    Returns:
        The samples, the same in every process.

    Raises:
        InputError: If a dataset cannot be read or has too few rows.
    """
    return draw_samples(
        _open(recipe, recipe.draws, None, experts, run),
        experts[0].preprocessing,
        per_expert=recipe.samples.per_expert,
        seed=recipe.samples.seed,
    )


def draw_recorded(
    recipe: Recipe, coin: CoinRecord, experts: Sequence[Expert], run: RunContext
) -> Samples:
    """Draw the samples of a coded repository again.

    Args:
        recipe: A recipe whose draws are the repository's.
        coin: The repository's record.
        experts: The experts, in order, or one of them where labels do not matter.
        run: Where the run computes; the main process downloads first.

    Returns:
        The samples, the same in every process.

    Raises:
        InputError: If the datasets no longer hold the recorded rows.
    """
    samples = draw(recipe, experts, run)
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
    experts: Sequence[Expert],
    run: RunContext,
) -> list[LabelledRows[Any]]:
    """Open datasets by name -> key: the given split, or the one their samples come from."""
    with run.main_first():
        return [
            open_rows(
                experts[0].preprocessing,
                key,
                recipe.datasets[key],
                split or recipe.datasets[key].split,
                experts[0].num_classes,
                run.datasets,
                owner_of(recipe, name, key, experts),
            )
            for name, key in keys.items()
        ]


def owner_of(
    recipe: Recipe | FisherRecipe, name: str, key: str, experts: Sequence[Expert]
) -> Owner | None:
    """Find the expert whose classes a draw's labels are: of its name, else of its dataset.

    Args:
        recipe: The recipe.
        name: The draw's name.
        key: Its dataset.
        experts: The experts, in order.

    Returns:
        Its name, classes and their rows; None where no expert is of that dataset, or labels do not
        matter.
    """
    if isinstance(recipe, FisherRecipe):
        return None
    datasets = {block.label: block.dataset for block in recipe.experts}
    own = [expert for expert in experts if expert.name == name]
    own += [expert for expert in experts if datasets.get(expert.name) == key]
    if not own:
        return None
    order = own[0].class_order
    return Owner(own[0].name, own[0].own_names, None if order is None else order.rows)

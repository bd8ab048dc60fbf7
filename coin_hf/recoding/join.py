"""Check an expert that joins a coded repository, and load or compute its Fisher."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from coin_hf.encoding.context import RunContext
from coin_hf.encoding.fishers import compute_fisher
from coin_hf.encoding.inputs import draw_recorded
from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment
from coin_hf.experts.classes import in_common_rows, with_labels
from coin_hf.experts.coded_model import as_stored
from coin_hf.experts.expert import Expert, load_expert, read_expert
from coin_hf.experts.one_dtype import cast_expert, floating_dtype
from coin_hf.experts.trial import check_runs
from coin_hf.hub.client import locate
from coin_hf.hub.layout import FISHERS
from coin_hf.networks.class_rows import spread
from coin_hf.recipe import Recipe
from coin_hf.recipe.blocks import ExpertBlock
from coin_hf.recoding.checkpoints import checkpoint_of
from coin_hf.records.coin import ClassOrder, CoinRecord
from coin_hf.repository.fisher_files import check_fisher, fisher_path, load_fisher, write_fisher
from coin_hf.repository.fisher_origin import draws_of, fisher_metadata, samples_hash
from coin_hf.repository.mapped_tensors import weights_in
from coin_hf.repository.provenance import environment

SHOWN = 5
"""Labels listed in a message."""


@dataclass(frozen=True)
class Joined:
    """An expert that joins, with its Fisher."""

    library: Literal["timm", "transformers"]
    license: str | None
    class_order: ClassOrder | None
    """The rows of its own classes, if they are not its own head's."""
    labels: list[str] | None
    """Their names, if it has any."""
    source: Path | None
    """The file that holds its Fisher, if already computed."""
    fisher: Mapping[str, Tensor]
    metadata: dict[str, str]

    @property
    def recorded(self) -> dict[str, Any]:
        """What coin.json records of it, besides its entry in the recipe."""
        order = None if self.class_order is None else self.class_order.dump()
        return {"library": self.library, "class_order": order, "labels": self.labels}

    def write_fisher(self, place: Path) -> None:
        """Write its Fisher.

        Args:
            place: The file.
        """
        if self.source is not None:
            shutil.copyfile(self.source, place)
        else:
            write_fisher(place, self.fisher, self.metadata)


def join(
    folder: Path,
    coin: CoinRecord,
    recipe: Recipe,
    block: ExpertBlock,
    published: str | None,
    *,
    progress: bool,
) -> Joined:
    """Load an expert, check it against the coded model, and get its Fisher.

    Args:
        folder: The coded repository.
        coin: The content of its `coin.json`.
        recipe: The new recipe, whose draws are those of the repository.
        block: The expert's entry in it.
        published: Hub id or folder that holds its Fisher; None to compute it.
        progress: Show a bar on stderr.

    Returns:
        The expert, checked, with its Fisher.

    Raises:
        InputError: If it does not match, its Fisher was computed on other samples, or the datasets
            do not hold the recorded rows.
    """
    expert = load_expert(
        block.model,
        revision=block.revision,
        library=block.library,
        name=block.label,
        base=block.base,
        base_revision=block.base_revision,
    )
    coded = read_expert(
        folder, repo="", revision="", library="auto", device=None, name="coded model"
    )
    cast_expert(expert, floating_dtype(coded))
    check_runs(expert)
    expert = _in_rows_of(coded, with_labels(expert, block.labels), recipe, coin)
    check_alignment([coded, expert])
    if published is not None:
        return _published(published, block, expert, coin)
    run = RunContext(progress=progress)
    samples = draw_recorded(recipe, coin, [expert], run)
    fitting, _ = samples.split(recipe.samples.held_out)
    found = compute_fisher(recipe, expert, fitting, run)
    metadata = fisher_metadata(
        model=expert.repo,
        revision=expert.revision,
        draws=draws_of(coin),
        estimator=coin.fisher,
        versions=environment(),
        tied=expert.tied,
        class_order=expert.class_order,
    )
    values = as_stored(expert, found)
    return _joined(coin, expert, None, values, metadata)


def _in_rows_of(coded: Expert, expert: Expert, recipe: Recipe, coin: CoinRecord) -> Expert:
    """Place an expert's rows among the coded model's, which must have all its labels."""
    if recipe.classes == "separate":
        raise InputError(
            "the experts were coded with `classes: separate`, so that one that joins would need "
            "rows of its own: encode again from a recipe with all experts"
        )
    classes = recipe.classes or ("name" if coin.label_sets is not None else None)
    known, (wider, placed) = coded.num_classes, in_common_rows([coded, expert], classes)
    if wider.num_classes > known:
        new = [name for name in placed.own_names or () if name not in (coded.label_names or ())]
        raise InputError(
            f"expert '{expert.name}' has labels that the coded model lacks "
            f"({', '.join(new[:SHOWN])}), and the saved Fishers say nothing of them: encode again "
            "from a recipe with all experts"
        )
    return placed


def _published(place: str, block: ExpertBlock, expert: Expert, coin: CoinRecord) -> Joined:
    """Check a published Fisher and use it."""
    folder = locate(place, None, [f"{FISHERS}/*"])
    path = folder / fisher_path(expert.name)
    with tempfile.TemporaryDirectory() as scratch:
        weights = checkpoint_of(block, Path(scratch))
        shapes = weights_in(weights, f"expert '{expert.name}'").shapes
    said = check_fisher(
        path,
        expert=expert.name,
        revision=expert.revision,
        shapes=shapes,
        samples_sha256=samples_hash(draws_of(coin)),
    )
    order, held = expert.class_order, said.get("class_order")
    if held == (None if order is None else order.model_dump_json()):
        return _joined(coin, expert, path, {}, said)
    if order is not None and order.width is not None:
        raise InputError(
            f"expert '{expert.name}' lacks labels of the coded model, for which its Fisher has no "
            "rows: leave `--fisher` out, and it is computed"
        )
    if held is not None or order is None:
        raise InputError(
            f"the Fisher of expert '{expert.name}' has its classes in the order of another coded "
            "model: compute it with `coin-hf fisher --like TARGET`"
        )
    values = {
        name: spread(value, order.rows, order.count) if name in order.tensors else value
        for name, value in load_fisher(path).items()
    }
    said |= {"class_order": order.model_dump_json()}
    return _joined(coin, expert, None, values, said)


def _joined(
    coin: CoinRecord,
    expert: Expert,
    source: Path | None,
    values: Mapping[str, Tensor],
    metadata: dict[str, str],
) -> Joined:
    labels = None if expert.own_names is None else list(expert.own_names)
    return Joined(
        coin.library, expert.license, expert.class_order, labels, source, values, metadata
    )

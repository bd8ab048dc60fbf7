"""Re-code without data: change betas, lambda or experts from a repository's saved Fishers."""

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coin_hf.erasure.betas import Betas, rows_of
from coin_hf.errors import InputError
from coin_hf.experts.merged_config import (
    merged_names,
    names_in,
    nested,
    placed_names,
    timm_config,
    transformers_config,
)
from coin_hf.hub.client import local_folder, locate
from coin_hf.hub.layout import BESIDE_FILES, CODED_FILES, FISHERS, coded_folder
from coin_hf.recipe import Recipe
from coin_hf.recipe.text_files import read_json
from coin_hf.recoding.changes import Newcomer, changed_recipe, recoded_coin, recoded_result
from coin_hf.recoding.checkpoints import checkpoint_of
from coin_hf.recoding.streaming import check_same_tensors, write_coded
from coin_hf.records.coin import CoinRecord, ExpertRecord
from coin_hf.reports.result import Result
from coin_hf.repository.fisher_files import check_fisher, fisher_path, tied_in
from coin_hf.repository.fisher_origin import draws_of, samples_hash
from coin_hf.repository.folder import check_output, read_records, write_repository
from coin_hf.repository.mapped_tensors import Tensors, weights_in

if TYPE_CHECKING:
    from coin_hf.recoding.join import Joined


def recode(
    target: str | Path,
    output: str | Path | None = None,
    *,
    betas: Betas | None = None,
    lam: float | None = None,
    coded: int | None = None,
    add: Sequence[Newcomer] = (),
    drop: Sequence[str] = (),
    revision: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> Result:
    """Rewrite a coded repository, tensor by tensor, from pinned experts and saved Fishers.

    Data is read only for an expert that joins: its Fisher is computed on the samples that the
    repository records, like the others'. Memory does not grow with the networks: mapped files are
    coded and written in chunks. The new repository has no measurements until
    `coin-hf evaluate FOLDER --save`. Steps of `refine` are not repeated, with a warning.

    Args:
        target: A coded repository with Fishers (encoded with `fisher.save`).
        output: Output folder; by default `target` itself, which requires `overwrite`.
        betas: New coding weights, shape (N,) or (M, N); by default the recorded ones, or designed
            ones if the number of experts or coded models changes.
        lam: New penalty; by default the recorded one.
        coded: New number of coded models, with designed betas.
        add: Experts that join, in order, after the others.
        drop: Names of experts that leave.
        revision: The repository's revision on the Hub.
        overrides: `datasets.NAME.key=value` changes, for the dataset of an expert that joins.
        overwrite: Replace an existing coded repository.
        progress: Show a bar on stderr while a Fisher is computed.

    Returns:
        The content of the new `result.json`.

    Raises:
        InputError: If the repository holds no Fishers, one does not belong to its expert, an expert
            cannot be found or has changed, or the changes are inconsistent.

    Example:
        recode("me/coded", "coded", betas=[0.7, 0.3], lam=1e-3)
    """
    start = time.perf_counter()
    repo, out = str(target), _output(str(target), output)
    check_output(out, overwrite=overwrite)
    folder = locate(repo, revision, [*CODED_FILES, f"{FISHERS}/*"])
    coin, result = read_records(folder, repo)
    _check_recodable(repo, coin)
    recipe = changed_recipe(coin.recipe, betas, lam, coded, add, drop, overrides)
    with tempfile.TemporaryDirectory() as scratch:  # adapters, merged
        plan = _check(
            folder, coin, recipe, {new.label: new for new in add}, Path(scratch), progress=progress
        )
        joins = {name: each.recorded for name, each in plan.joined.items()}
        licenses = {name: each.license for name, each in plan.joined.items()}
        record = recoded_coin(coin, recipe, joins)
        made = recoded_result(result, record, licenses)

        def write(draft: Path) -> None:
            _write(plan, record, result.num_classes, draft)
            made.run.seconds["recode"] = round(time.perf_counter() - start, 2)

        write_repository(out, write, record, made, overwrite=overwrite)
    return made


@dataclass(frozen=True)
class _Plan:
    """The checked inputs of a re-coding."""

    folder: Path
    """The old coded repository."""
    names: list[str]
    """The experts, in order."""
    sources: dict[str, Path]
    """Each expert's checkpoint."""
    model: Tensors
    """A coded model, for the names, dtypes and order of its tensors."""
    experts: list[Tensors]
    tied: dict[str, str]
    """Tied parameters by name, with the name they are tied to."""
    joined: "Mapping[str, Joined]"
    renamed: bool
    """Whether the experts changed, so that class names may differ."""


def _output(repo: str, output: str | Path | None) -> Path:
    """Return the folder to write."""
    if output is not None:
        return Path(output)
    if local_folder(repo) is None:
        raise InputError(f"'{repo}' lies on the Hub: say where to write with --output FOLDER")
    return Path(repo)


def _check_recodable(repo: str, coin: CoinRecord) -> None:
    """Refuse a repository without Fishers; warn if it was refined."""
    if not coin.fisher.save:
        raise InputError(
            f"'{repo}' holds no Fishers, so it cannot be re-coded without data: encode it again "
            "with `fisher: {save: true}`"
        )
    if coin.recipe.refine:
        steps = ", ".join(block.step for block in coin.recipe.refine)
        warnings.warn(
            f"'{repo}' was refined ({steps}), but the re-coded models are not, as that takes the "
            "samples: encode again to refine them",
            stacklevel=3,
        )


def _check(
    folder: Path,
    coin: CoinRecord,
    recipe: Recipe,
    joins: Mapping[str, Newcomer],
    scratch: Path,
    *,
    progress: bool,
) -> _Plan:
    """Compare experts and Fishers with the coded model before anything is written."""
    sources = {block.label: checkpoint_of(block, scratch) for block in recipe.experts}
    model = weights_in(folder, "the coded model")
    experts = {name: weights_in(place, f"expert '{name}'") for name, place in sources.items()}
    tied: dict[str, str] = {}
    joined: dict[str, Joined] = {}
    for block in recipe.experts:
        if block.label in joins:
            continue
        said = check_fisher(
            folder / fisher_path(block.label),
            expert=block.label,
            revision=str(block.revision),
            shapes=model.shapes,
            samples_sha256=samples_hash(draws_of(coin)),
        )
        tied = tied_in(said, fisher_path(block.label))
    for block in recipe.experts:
        if block.label in joins:
            from coin_hf.recoding.join import join  # only this loads networks and data

            published = joins[block.label].fisher
            joined[block.label] = join(folder, coin, recipe, block, published, progress=progress)
    orders = {expert.name: expert.class_order for expert in coin.experts}
    orders |= {name: each.class_order for name, each in joined.items()}
    for name, place in sources.items():
        if orders[name] is not None:
            experts[name] = weights_in(place, f"expert '{name}'", orders[name])
    check_same_tensors(list(experts.values()), model)
    names = list(sources)
    renamed = names != [expert.name for expert in coin.experts]
    return _Plan(folder, names, sources, model, list(experts.values()), tied, joined, renamed)


def _write(plan: _Plan, record: CoinRecord, classes: int, draft: Path) -> None:
    """Write Fishers, weights and configurations into an empty folder."""
    (draft / FISHERS).mkdir()
    for name in plan.names:
        place = draft / fisher_path(name)
        if name in plan.joined:
            plan.joined[name].write_fisher(place)
        else:
            shutil.copyfile(plan.folder / fisher_path(name), place)
    fishers = [
        Tensors([draft / fisher_path(name)], f"the Fisher of expert '{name}'")
        for name in plan.names
    ]
    rows, lam = rows_of(record.betas), float(record.lam or 0)
    try:
        write_coded(draft, plan.model, plan.experts, fishers, plan.tied, rows, lam)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{error}: compute that Fisher again, or encode again") from error
    _write_configs(plan, record, classes, draft)


def _write_configs(plan: _Plan, record: CoinRecord, classes: int, draft: Path) -> None:
    """Write the files beside the weights, with new class names if the experts changed."""
    config = _config(plan.folder)
    if plan.renamed:
        configs = [_config(place) for place in plan.sources.values()]
        rows = names_in(config, record.library, classes)
        names = merged_names(
            [
                _names_by_row(expert, each, classes, rows)
                for expert, each in zip(record.experts, configs, strict=True)
            ]
        )
        if record.library == "timm":
            config = timm_config(configs[0], classes, names)
        else:
            config = transformers_config(config, names)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    for c in range(len(rows_of(record.betas))):
        place = draft / coded_folder(c)
        (place / "config.json").write_text(text, encoding="utf-8")
        for name in BESIDE_FILES:
            if (plan.folder / name).is_file():
                shutil.copyfile(plan.folder / name, place / name)


def _names_by_row(
    expert: ExpertRecord, config: Mapping[str, Any], classes: int, rows: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Name all rows as one expert does, those that it lacks as the coded model does."""
    order = expert.class_order
    if order is not None and order.width is not None:
        return rows
    own = tuple(expert.labels or ()) or names_in(config, expert.library, classes)
    return own if order is None else placed_names(own, order)


def _config(folder: Path) -> dict[str, Any]:
    try:
        return nested(read_json(folder / "config.json", f"{folder}: config.json", "restore it"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no config.json: restore it") from error

"""Compute, save and publish one expert's Fisher, for others to code with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from coin_hf.encoding.context import RunContext
from coin_hf.encoding.fishers import compute_fisher
from coin_hf.encoding.inputs import draw
from coin_hf.encoding.pinning import pin_datasets
from coin_hf.errors import InputError, reason_of
from coin_hf.experts.coded_model import as_stored
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.trial import check_runs
from coin_hf.fisher import resolve_estimator
from coin_hf.hub.client import locate
from coin_hf.hub.layout import COIN_FILE, RESULT_FILE
from coin_hf.recipe.blocks import FisherBlock
from coin_hf.recipe.fisher_recipe import FisherRecipe
from coin_hf.repository.atomic import check_name, whole_file
from coin_hf.repository.fisher_files import fisher_path, write_fisher
from coin_hf.repository.fisher_origin import drawn, fisher_metadata
from coin_hf.repository.folder import read_records
from coin_hf.repository.locks import only_writer
from coin_hf.repository.provenance import environment
from coin_hf.repository.push import commit_files

FULL = {"save": True}
"""The Fisher in full precision, with an estimator chosen by the number of classes."""


def make_fisher(
    model: str,
    folder: str | Path,
    *,
    datasets: Sequence[str] = (),
    like: str | None = None,
    per_expert: int = 100,
    seed: int = 0,
    split: str = "train",
    fisher: Mapping[str, Any] = FULL,
    overrides: Sequence[str] = (),
    revision: str | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Path:
    """Compute one expert's Fisher and write its file, completely or not at all.

    Args:
        model: The expert: Hub id or folder.
        folder: Where `fisher/<expert>.safetensors` goes.
        datasets: Hub ids or folders, one draw of samples from each; empty with `like`.
        like: A coded repository whose samples are used, so that the expert can join it.
        per_expert: Samples from each dataset.
        seed: Seed of their draw.
        split: Split they are drawn from.
        fisher: The recipe's `fisher`: estimator, probes, batch size; `save: half` for 16 bits.
        overrides: `datasets.NAME.key=value` changes; a dataset's name is its last part.
        revision: The expert's revision.
        name: The expert's name; by default the last part of `model`.
        progress: Show a bar on stderr, in the main process.

    Returns:
        The file.

    Raises:
        InputError: If the expert or a dataset is not usable, both or neither of `datasets` and
            `like` are given, or the file cannot be written.

    Example:
        file = make_fisher("me/low", "fishers", datasets=["me/digits"])
        publish_fisher(file, "me/low")
    """
    recipe = _recipe(
        datasets,
        like,
        samples={"per_expert": per_expert, "seed": seed},
        split=split,
        fisher=dict(fisher),
        overrides=overrides,
    )
    check_name(Path(folder) / fisher_path(name or Path(model).name))
    run = RunContext(progress=progress)
    with run.main_first():
        expert = load_expert(model, revision=revision, name=name, device=run.device)
    check_runs(expert)
    samples = draw(recipe, [expert], run)
    fitting, _ = samples.split(recipe.samples.held_out)
    found = compute_fisher(recipe, expert, fitting, run)
    path = Path(folder) / fisher_path(expert.name)
    if run.processes.rank == 0:
        rows = dict(zip(recipe.draws, samples.rows, strict=True))
        metadata = fisher_metadata(
            model=expert.repo,
            revision=expert.revision,
            draws=drawn(recipe.draws, rows, recipe.datasets, recipe.samples.held_out),
            estimator=_resolved(recipe, expert),
            versions=environment(),
            tied=expert.tied,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with only_writer(path), whole_file(path) as draft:
                write_fisher(draft, as_stored(expert, found), metadata)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write {path}: {reason_of(error)}; free some space or choose another output"
            ) from error
    return path


def publish_fisher(file: Path, repo_id: str, *, private: bool = False) -> str:
    """Commit a Fisher file to a model repository on the Hub, the expert's own or another.

    Args:
        file: `fisher/<expert>.safetensors` in some folder.
        repo_id: Hub id; created if needed.
        private: Make a new repository private.

    Returns:
        Address of the commit.

    Raises:
        InputError: If the Hub cannot be reached or refuses the commit.
    """
    return commit_files(
        repo_id,
        {f"{file.parent.name}/{file.name}": file},
        commit_message=f"Add the diagonal Fisher of {file.stem}",
        private=private,
    )


def _recipe(
    datasets: Sequence[str],
    like: str | None,
    *,
    samples: dict[str, Any],
    split: str,
    fisher: dict[str, Any],
    overrides: Sequence[str],
) -> FisherRecipe:
    """Build a Fisher's recipe, from datasets or the samples of a coded repository."""
    if bool(datasets) == (like is not None):
        raise InputError(
            "say what the Fisher is computed on: either --dataset, once for each, or --like TARGET "
            "for the samples of a coded model"
        )
    if like is not None:
        coin, _ = read_records(locate(like, None, [COIN_FILE, RESULT_FILE]), like)
        said = coin.dump()
        said["samples"].pop("rows")
        drawn_as = {**said["samples"], "draws": coin.draws}
        data = {"datasets": said["datasets"], "samples": drawn_as}
        data["fisher"] = {**said["fisher"], "save": fisher["save"]}
    else:
        names = [Path(path).name for path in datasets]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two datasets are named '{name}': give them other folder names")
        data = {
            "datasets": {
                name: {"path": path, "split": split}
                for name, path in zip(names, datasets, strict=True)
            },
            "samples": samples,
            "fisher": fisher,
        }
    return pin_datasets(FisherRecipe.make(data, overrides))


def _resolved(recipe: FisherRecipe, expert: Expert) -> FisherBlock:
    estimator = resolve_estimator(expert.num_classes, recipe.fisher.estimator)
    return recipe.fisher.model_copy(update={"estimator": estimator})

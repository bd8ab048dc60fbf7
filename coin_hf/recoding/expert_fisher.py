"""One expert's Fisher alone: computed, written, published for others to merge with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import CommitOperationAdd, HfApi

from coin_hf.encoding.inputs import compute_fisher, draw
from coin_hf.errors import InputError
from coin_hf.experts.coded_model import as_stored
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.fisher import resolve_estimator
from coin_hf.hub.client import fetch, local_folder, pin, sentences
from coin_hf.hub.layout import COIN_FILE, RESULT_FILE
from coin_hf.recipe.recipe import FisherRecipe
from coin_hf.repository.fisher_files import draws_of, fisher_metadata, fisher_path, write_fisher
from coin_hf.repository.folder import read_repository
from coin_hf.repository.records import environment


def fisher_recipe(
    datasets: Sequence[str],
    like: str | None,
    *,
    per_expert: int,
    seed: int,
    split: str,
    fisher: dict[str, Any],
    overrides: Sequence[str] = (),
) -> FisherRecipe:
    """Say what a Fisher is computed from: datasets, or the samples of a coded repository.

    Args:
        datasets: Hub ids or folders, one draw of samples from each; empty with `like`.
        like: A coded repository whose samples are taken, so that the expert can join it.
        per_expert: Samples from each dataset.
        seed: Seed of their draw.
        split: Split they are drawn from.
        fisher: The recipe's `fisher`: estimator, probes, batch size, precision.
        overrides: `datasets.NAME.key=value` changes; a dataset's name is its last part.

    Returns:
        The recipe, revisions pinned.

    Raises:
        InputError: If both or neither are given, or something cannot be found or is not valid.
    """
    if bool(datasets) == (like is not None):
        raise InputError(
            "say what the Fisher is computed on: either --dataset, once for each, or --like TARGET "
            "for the samples of a coded model"
        )
    if like is not None:
        folder = local_folder(like) or fetch(like, pin(like, None), [COIN_FILE, RESULT_FILE])
        coin, _ = read_repository(folder, like)
        samples = {key: value for key, value in coin["samples"].items() if key != "rows"}
        samples.setdefault("draws", {e["name"]: e["dataset"] for e in coin["experts"]})
        data = {"datasets": coin["datasets"], "samples": samples, "fisher": coin["fisher"]}
        data["fisher"] = {**data["fisher"], "save": fisher["save"]}
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
            "samples": {"per_expert": per_expert, "seed": seed},
            "fisher": fisher,
        }
    recipe = FisherRecipe.make(data, overrides)
    pinned = {
        key: block.model_copy(update={"revision": pin(block.path, block.revision, "dataset")})
        for key, block in recipe.datasets.items()
    }
    return recipe.model_copy(update={"datasets": pinned})


def make_fisher(
    model: str,
    recipe: FisherRecipe,
    folder: Path,
    *,
    revision: str | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Path:
    """Compute one expert's Fisher and write its file, whole or not at all.

    Args:
        model: The expert: Hub id or folder.
        recipe: What it is computed from.
        folder: Where `fisher/<expert>.safetensors` goes.
        revision: The expert's revision.
        name: The expert's name; by default the last part of `model`.
        progress: Show a bar on stderr, in the main process.

    Returns:
        The file.

    Raises:
        InputError: If the expert or a dataset is not usable, or the file cannot be written.
    """
    accelerator = Accelerator()
    with accelerator.main_process_first():
        expert = load_expert(model, revision=revision, name=name, device=accelerator.device)
    samples = draw(recipe, expert, accelerator)
    fitting, _ = samples.split(recipe.samples.held_out)
    found = compute_fisher(recipe, expert, fitting, accelerator, progress)
    path = folder / fisher_path(expert.name)
    if accelerator.is_main_process:
        metadata = fisher_metadata(
            model=expert.repo,
            revision=expert.revision,
            draws=draws_of(_record(recipe, samples.rows)),
            estimator=_estimator(recipe, expert),
            versions=environment(),
            tied=expert.tied,
        )
        draft = path.with_name(f".{path.name}")
        try:
            write_fisher(draft, as_stored(expert, found), metadata)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def publish_fisher(file: Path, repo_id: str, *, private: bool = False) -> str:
    """Commit a Fisher's file to a model repository on the Hub, the expert's own or another.

    Args:
        file: `fisher/<expert>.safetensors` in some folder.
        repo_id: Hub id; created if there is none.
        private: Create it private.

    Returns:
        Address of the commit.

    Raises:
        InputError: If the Hub cannot be reached or refuses.
    """
    path = f"{file.parent.name}/{file.name}"
    with sentences(repo_id, None, "model"):
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, file)],
            commit_message=f"Add the diagonal Fisher of {file.stem}",
        )
    return str(commit.commit_url)


def _record(recipe: FisherRecipe, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the samples as `coin.json` records them."""
    datasets = {key: block.model_dump(mode="json") for key, block in recipe.datasets.items()}
    drawn = {name: list(part) for name, part in zip(recipe.draws, rows, strict=True)}
    samples = {"draws": recipe.draws, "rows": drawn, "held_out": recipe.samples.held_out}
    return {"datasets": datasets, "samples": samples}


def _estimator(recipe: FisherRecipe, expert: Expert) -> dict[str, Any]:
    said = recipe.fisher.model_dump()
    return {**said, "estimator": resolve_estimator(expert.num_classes, said["estimator"])}

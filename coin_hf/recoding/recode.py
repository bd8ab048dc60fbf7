"""Re-coding: other betas, lambda or experts from a coded repository's Fishers, without data."""

import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coin_hf.erasure.betas import Betas, rows_of, written
from coin_hf.errors import InputError
from coin_hf.experts.merged_config import merged_names, names_in, timm_config, transformers_config
from coin_hf.hub.client import fetch, local_folder, pin
from coin_hf.hub.layout import CHECKPOINT_FILES, CODED_FILES, FISHERS, REFINING, coded_folder
from coin_hf.recipe import Recipe
from coin_hf.repository.fisher_files import check_fisher, draws_of, fisher_path, samples_hash
from coin_hf.repository.folder import check_output, read_repository, write_repository
from coin_hf.repository.mapped_tensors import Tensors, check_same_tensors, weights_in, write_coded
from coin_hf.repository.records import environment, measured, place_of, recipe_of

if TYPE_CHECKING:
    from coin_hf.recoding.join import Joined


@dataclass(frozen=True)
class Newcomer:
    """An expert that joins."""

    model: str
    """Hub id or folder."""
    dataset: str
    """Its dataset: a name in the coded repository's records, or a Hub id or folder."""
    revision: str | None = None
    name: str | None = None
    fisher: str | None = None
    """Hub id or folder that holds its Fisher on the coded repository's samples, as `coin-hf fisher
    --like` makes it; by default it is computed."""


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
) -> dict[str, Any]:
    """Write a coded repository anew, tensor by tensor, from pinned experts and saved Fishers.

    No data is read but for an expert that joins: its Fisher is taken on the samples that the
    repository records, as those of the others were. Memory does not grow with the networks: parts
    of mapped files are coded and written one after the other. The new repository holds no measured
    number until `coin-hf evaluate FOLDER --save`. Steps of `refine` are not repeated: a warning
    says so.

    Args:
        target: A coded repository with Fishers (encoded with `fisher.save`).
        output: The folder to write; by default `target` itself, which takes `overwrite`.
        betas: New coding weights, shape (N,) or (M, N); by default those recorded, and designed
            ones where the number of experts or coded models changes.
        lam: New penalty; by default the one recorded.
        coded: New number of coded models, their betas designed.
        add: Experts that join, in order, behind the others.
        drop: Names of experts that leave.
        revision: The repository's revision on the Hub.
        overrides: `datasets.NAME.key=value` changes, for the dataset of an expert that joins.
        overwrite: Replace a coded repository that is there.
        progress: Show a bar on stderr where a Fisher is computed.

    Returns:
        The content of the new `result.json`.

    Raises:
        InputError: If the repository holds no Fishers, one does not belong to its expert, an expert
            cannot be found or has changed, or what is asked for does not fit together.

    Example:
        recode("me/coded", "coded", betas=[0.7, 0.3], lam=1e-3)
    """
    repo = str(target)
    local = local_folder(repo)
    if output is None and local is None:
        raise InputError(f"'{repo}' lies on the Hub: say where to write with --output FOLDER")
    out = Path(output) if output is not None else Path(repo)
    check_output(out, overwrite=overwrite)
    start = time.perf_counter()
    patterns = [*CODED_FILES, f"{FISHERS}/*"]
    folder = local or fetch(repo, pin(repo, revision), patterns)
    coin, result = read_repository(folder, repo)
    if not coin["fisher"].get("save"):
        raise InputError(
            f"'{repo}' holds no Fishers, so it cannot be re-coded without data: encode it again "
            "with `fisher: {save: true}`"
        )
    recorded = recipe_of(coin)
    if recorded.refine:
        steps = ", ".join(block.step for block in recorded.refine)
        warnings.warn(
            f"'{repo}' was refined ({steps}), which takes the samples: what is re-coded is not; "
            "encode again to have it",
            stacklevel=2,
        )
    recipe = _changed(recorded, betas, lam, coded, add, drop, overrides)
    joins = {new.name or Path(new.model).name: new for new in add}
    folders = {
        block.label: fetch(block.model, block.revision, CHECKPOINT_FILES)
        for block in recipe.experts
    }
    model = weights_in(folder, "the coded model")
    experts = [weights_in(folders[e.label], f"expert '{e.label}'") for e in recipe.experts]
    check_same_tensors(experts, model)
    tied: dict[str, str] = {}
    for block in recipe.experts:
        if block.label not in joins:
            said = check_fisher(
                folder / fisher_path(block.label),
                expert=block.label,
                revision=str(block.revision),
                shapes=model.shapes,
                samples_sha256=samples_hash(draws_of(coin)),
            )
            tied = json.loads(said["tied"])
    joined: dict[str, Joined] = {}
    for block in recipe.experts:
        if block.label in joins:
            from coin_hf.recoding.join import (
                join,  # it loads networks and data, nothing else here does
            )

            fisher = joins[block.label].fisher
            joined[block.label] = join(folder, coin, recipe, block, fisher, progress=progress)
    rows = rows_of(recipe.coding_weights)
    old_names = [entry["name"] for entry in coin["experts"]]
    record = _coin_record(coin, recipe, joined)
    made = _result_record(result, record, joined)

    def write(draft: Path) -> None:
        (draft / FISHERS).mkdir()
        for block in recipe.experts:
            place = draft / fisher_path(block.label)
            if block.label in joined:
                joined[block.label].write_fisher(place)
            else:
                shutil.copyfile(folder / fisher_path(block.label), place)
        fishers = [
            Tensors([draft / fisher_path(e.label)], f"the Fisher of expert '{e.label}'")
            for e in recipe.experts
        ]
        try:
            write_coded(draft, model, experts, fishers, tied, rows, record["lam"])
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{error}: compute that Fisher again, or encode again") from error
        changed = [e.label for e in recipe.experts] != old_names
        _write_configs(draft, folder, len(rows), folders if changed else None, made)
        made["run"]["seconds"] = {"recode": round(time.perf_counter() - start, 2)}

    write_repository(out, write, record, made, overwrite=overwrite)
    return made


def _changed(
    recorded: Recipe,
    betas: Betas | None,
    lam: float | None,
    coded: int | None,
    add: Sequence[Newcomer],
    drop: Sequence[str],
    overrides: Sequence[str],
) -> Recipe:
    """Return the recorded recipe with what is asked for, validated, its revisions pinned."""
    for override in overrides:
        if override.split(".")[0] != "datasets":
            raise InputError(
                f"override '{override}' changes what re-coding has options for: overrides set keys "
                "of `datasets`, for an expert that joins"
            )
    data = recorded.dump()
    names = [expert.label for expert in recorded.experts]
    for name in drop:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
            raise InputError(f"there is no expert '{name}' to drop: {hint}")
    data["experts"] = [e for e in data["experts"] if e["name"] not in drop]
    for new in add:
        name = new.name or Path(new.model).name
        key = new.dataset if new.dataset in data["datasets"] else name
        if key == name and key not in data["datasets"]:
            data["datasets"][key] = {"path": new.dataset}
        block = {"model": new.model, "dataset": key, "name": name, "revision": new.revision}
        data["experts"].append({k: v for k, v in block.items() if v is not None})
    if add or drop:
        data["samples"]["draws"] = recorded.draws
    if lam is not None:
        data["lam"] = lam
    rows = rows_of(recorded.coding_weights)
    if betas is not None:
        data["betas"] = written(rows_of(betas))
        if coded is not None:
            data["coded"] = coded
    elif len(data["experts"]) != len(names) or coded not in (None, len(rows)):
        del data["betas"]
        data["coded"] = coded or len(rows)
    recipe = Recipe.from_dict(data, source="recode").override(overrides)
    experts = [e.model_copy(update={"revision": pin(e.model, e.revision)}) for e in recipe.experts]
    datasets = {
        key: block
        if block.revision
        else block.model_copy(update={"revision": pin(block.path, None, "dataset")})
        for key, block in recipe.datasets.items()
    }
    return recipe.model_copy(update={"experts": tuple(experts), "datasets": datasets})


def _coin_record(
    coin: Mapping[str, Any], recipe: Recipe, joined: "Mapping[str, Joined]"
) -> dict[str, Any]:
    """Build the new `coin.json`: nothing in it claims a measurement."""
    said = recipe.dump()
    experts = [
        {**entry, "model": place_of(entry["model"])}
        | ({"library": joined[entry["name"]].library} if entry["name"] in joined else {})
        for entry in said["experts"]
    ]
    datasets = {
        key: {**block, "path": place_of(block["path"])} for key, block in said["datasets"].items()
    }
    return {
        **{key: value for key, value in coin.items() if key not in REFINING},
        "betas": said["betas"],
        "lam": said["lam"],
        "experts": experts,
        "datasets": datasets,
        "samples": {**said["samples"], "rows": coin["samples"]["rows"]},
        "calibration": None,
        "versions": environment(),
        "recoded_from": {
            "betas": coin["betas"],
            "lam": coin["lam"],
            "experts": [entry["name"] for entry in coin["experts"]],
        },
    }


def _result_record(
    result: Mapping[str, Any], record: Mapping[str, Any], joined: "Mapping[str, Joined]"
) -> dict[str, Any]:
    """Build the new `result.json`: the old one without its measurements."""
    licenses = {entry["name"]: entry["license"] for entry in result["experts"]}
    licenses |= {name: each.license for name, each in joined.items()}
    samples = {key: value for key, value in record["samples"].items() if key != "rows"}
    dropped = (*REFINING, "refinements")
    return {
        **{key: value for key, value in result.items() if key not in dropped},
        **{key: record[key] for key in ("betas", "lam", "datasets", "recoded_from")},
        "choice": None,
        "experts": [{**e, "license": licenses[e["name"]]} for e in record["experts"]],
        "samples": {**samples, "count": result["samples"]["count"]},
        **measured(None),
        "calibration": None,
        "run": {"device": "cpu", "processes": 1, "seconds": {}, "versions": environment()},
    }


def _write_configs(
    draft: Path,
    folder: Path,
    coded: int,
    experts: Mapping[str, Path] | None,
    result: Mapping[str, Any],
) -> None:
    """Write what lies beside the weights: as it was, or for other experts (their folders)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if experts is not None:
        configs = [
            json.loads((place / "config.json").read_text(encoding="utf-8"))
            for place in experts.values()
        ]
        library, classes = result["library"], result["num_classes"]
        names = merged_names([names_in(each, library, classes) for each in configs])
        if library == "timm":
            config = timm_config(configs[0], classes, names)
        else:
            config = transformers_config(config, names)
    for c in range(coded):
        place = draft / coded_folder(c)
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (place / "config.json").write_text(text + "\n", encoding="utf-8")
        for name in ("preprocessor_config.json", "model.safetensors.index.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)

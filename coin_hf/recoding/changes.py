"""Build the changed recipe of a re-coding, and the new records that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from coin_hf.encoding.pinning import pin_datasets, pin_experts
from coin_hf.erasure.betas import Betas, rows_of, written
from coin_hf.errors import InputError
from coin_hf.recipe import Recipe
from coin_hf.records.coin import CoinRecord
from coin_hf.reports.result import Result
from coin_hf.repository.paths import place_of
from coin_hf.repository.provenance import environment
from coin_hf.repository.run_records import measured


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

    @property
    def label(self) -> str:
        """Its name in tables and messages."""
        return self.name or Path(self.model).name


def changed_recipe(
    recorded: Recipe,
    betas: Betas | None,
    lam: float | None,
    coded: int | None,
    add: Sequence[Newcomer],
    drop: Sequence[str],
    overrides: Sequence[str],
) -> Recipe:
    """Change a recorded recipe, validate it again, and pin what is new.

    Args:
        recorded: The recipe of a coded repository.
        betas: New coding weights, or None.
        lam: New penalty, or None.
        coded: New number of coded models, or None.
        add: Experts that join.
        drop: Names of experts that leave.
        overrides: `datasets.NAME.key=value` changes.

    Returns:
        The new recipe.

    Raises:
        InputError: If it is not valid, or an expert or dataset cannot be found.
    """
    for override in overrides:
        if override.split(".")[0] != "datasets":
            raise InputError(
                f"override '{override}' changes what re-coding has options for: overrides set keys "
                "of `datasets`, for an expert that joins"
            )
    data = recorded.dump()
    _drop(data, [expert.label for expert in recorded.experts], drop)
    for new in add:
        _add(data, new)
    if add or drop:
        data["samples"]["draws"] = recorded.draws
    if lam is not None:
        data["lam"] = lam
    rows = rows_of(recorded.coding_weights)
    if betas is not None:
        data["betas"] = written(rows_of(betas))
        if coded is not None:
            data["coded"] = coded
    elif len(data["experts"]) != len(recorded.experts) or coded not in (None, len(rows)):
        del data["betas"]
        data["coded"] = coded or len(rows)
    recipe = Recipe.from_dict(data, source="recode").override(overrides)
    return pin_datasets(pin_experts(recipe), trust_pinned=True)


def _drop(data: dict[str, Any], names: Sequence[str], drop: Sequence[str]) -> None:
    for name in drop:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
            raise InputError(f"there is no expert '{name}' to drop: {hint}")
    data["experts"] = [entry for entry in data["experts"] if entry["name"] not in drop]


def _add(data: dict[str, Any], new: Newcomer) -> None:
    key = new.dataset if new.dataset in data["datasets"] else new.label
    if key == new.label and key not in data["datasets"]:
        data["datasets"][key] = {"path": new.dataset}
    block = {"model": new.model, "dataset": key, "name": new.label, "revision": new.revision}
    data["experts"].append({k: v for k, v in block.items() if v is not None})


def recoded_coin(
    coin: CoinRecord, recipe: Recipe, joins: Mapping[str, dict[str, Any]]
) -> CoinRecord:
    """Build the new `coin.json`, without any measurement.

    Args:
        coin: The old one.
        recipe: The new recipe.
        joins: What is recorded of each expert that joined, besides its entry in the recipe, by
            name.

    Returns:
        The new record; folders are absolute paths.
    """
    said = recipe.dump()
    kept = ("library", "class_order", "labels")
    known = {e.name: {key: e[key] for key in kept} for e in coin.experts} | dict(joins)
    experts = [{**entry, **known[entry["name"]]} for entry in said["experts"]]
    return CoinRecord.model_validate(
        {
            **coin.dump(),
            "refine": None,
            "augment": None,
            "betas": said["betas"],
            "lam": said["lam"],
            "experts": experts,
            "datasets": said["datasets"],
            "samples": {**said["samples"], "rows": coin.samples.rows},
            "calibration": None,
            "versions": environment(),
            "recoded_from": {
                "betas": coin.betas,
                "lam": coin.lam,
                "experts": [expert.name for expert in coin.experts],
            },
        }
    ).moved(place_of)


def recoded_result(result: Result, coin: CoinRecord, licenses: Mapping[str, str | None]) -> Result:
    """Build the new `result.json`: the old one without its measurements.

    Args:
        result: The old one.
        coin: The new `coin.json`.
        licenses: The licence of each expert that joined, by name.

    Returns:
        The new record.
    """
    said = coin.dump()
    known = {expert.name: expert.license for expert in result.experts} | dict(licenses)
    said["samples"].pop("rows")
    return Result.model_validate(
        {
            **result.dump(),
            "refine": None,
            "augment": None,
            "refinements": None,
            **{key: said[key] for key in ("betas", "lam", "datasets", "recoded_from")},
            "choice": None,
            "experts": [{**entry, "license": known[entry["name"]]} for entry in said["experts"]],
            "samples": {**said["samples"], "count": result.samples.count},
            **measured(None),
            "calibration": None,
            "run": {"device": "cpu", "processes": 1, "seconds": {}, "versions": environment()},
        }
    )

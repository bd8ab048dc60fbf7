"""What a run leaves behind: the contents of `coin.json` and `result.json`, as plain data."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from coin_hf.hub.client import local_folder
from coin_hf.hub.layout import FORMAT, REFINING, SETTINGS
from coin_hf.recipe import Recipe

if TYPE_CHECKING:  # re-coding writes records too, and has no need of what loads and runs networks
    from coin_hf.data.samples import Samples
    from coin_hf.evaluation.calibration import Calibration
    from coin_hf.evaluation.erasures import Erasure, Measurement
    from coin_hf.experts.expert import Expert

LIBRARIES = (
    "coin-hf",
    "torch",
    "timm",
    "transformers",
    "datasets",
    "accelerate",
    "safetensors",
    "huggingface-hub",
)
"""Packages whose versions are recorded."""


def coin_record(
    recipe: Recipe,
    experts: "Sequence[Expert]",
    samples: "Samples",
    calibration: "Calibration",
) -> dict[str, Any]:
    """Build the content of `coin.json`: what decoding and repeating the run need.

    Args:
        recipe: The recipe as it was used: revisions pinned, what was chosen in place of `auto`.
        experts: The experts, in order.
        samples: The samples, all of them.
        calibration: What the samples say of the coded models.

    Returns:
        Plain data; folders are absolute paths.
    """
    from coin_hf.fisher import resolve_estimator  # see above: only `encode` comes here

    said = recipe.dump()
    for expert, entry in zip(experts, said["experts"], strict=True):
        entry |= {"model": place_of(entry["model"]), "library": expert.library}
    said["fisher"]["estimator"] = resolve_estimator(experts[0].num_classes, recipe.fisher.estimator)
    for dataset in said["datasets"].values():
        dataset["path"] = place_of(dataset["path"])
    drawn = {name: list(rows) for name, rows in zip(recipe.draws, samples.rows, strict=True)}
    return {
        "format": FORMAT,
        "library": experts[0].library,
        "coder": recipe.coder,
        "betas": said["betas"],
        "lam": said["lam"] if recipe.coder == "coin" else None,
        **_settings(recipe.coder, said),
        **recorded_steps(recipe),
        "experts": said["experts"],
        "datasets": said["datasets"],
        "samples": {**said["samples"], "rows": drawn},
        "fisher": said["fisher"],
        "evaluation": said["evaluation"],
        "calibration": calibration.dump(),
        "versions": environment(),
    }


def recorded_steps(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe says of refining and of copies, where it has a part.

    Args:
        recipe: The recipe.

    Returns:
        `refine` and `augment` as plain data, each only where it is used.
    """
    said = recipe.dump()
    used = {"refine": bool(recipe.refine), "augment": recipe.enlarges}
    return {key: said[key] for key in REFINING if used[key]}


def _settings(coder: str, said: dict[str, Any]) -> dict[str, Any]:
    """The settings block of a coder that has one."""
    if coder not in SETTINGS:
        return {}
    block = dict(said[coder])
    if "foundation" in block:
        block["foundation"] = place_of(block["foundation"])
    return {coder: block}


def recipe_of(coin: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a `coin.json` records, lambda and revisions as they were used.

    Args:
        coin: The content of `coin.json`, folders as absolute paths.

    Returns:
        The recipe, without output and hub.

    Raises:
        InputError: If the record is not a valid recipe.
    """
    keys = (
        "coder",
        "betas",
        "lam",
        *SETTINGS,
        *REFINING,
        "experts",
        "datasets",
        "fisher",
        "evaluation",
    )
    samples = {key: value for key, value in coin["samples"].items() if key != "rows"}
    return Recipe.from_dict(
        {
            **{key: coin[key] for key in keys if coin.get(key) is not None},
            "samples": samples,
        },
        source="coin.json",
    )


def result_record(
    coin: Mapping[str, Any],
    experts: "Sequence[Expert]",
    choice: Mapping[str, Any] | None,
    measurement: "Measurement",
    run: Mapping[str, Any],
    *,
    refinements: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build the content of `result.json`: every number of a run, and what it was measured on.

    Args:
        coin: The content of `coin.json`.
        experts: The experts, in order.
        choice: How the coder's number was chosen, if it was, as plain data.
        measurement: The measurements.
        run: Device, number of processes, seconds of each step, passes, and what training logged.
        refinements: What each step of `refine` did.

    Returns:
        Plain data; folders are absolute paths.
    """
    samples = {key: value for key, value in coin["samples"].items() if key != "rows"}
    return {
        **{key: coin[key] for key in ("format", "library", "coder", "betas", "lam")},
        "architecture": architecture(experts[0]),
        "num_classes": experts[0].num_classes,
        **{key: coin[key] for key in (*SETTINGS, *REFINING) if key in coin},
        "choice": None if choice is None else dict(choice),
        **({"refinements": [dict(each) for each in refinements]} if refinements else {}),
        "experts": [
            {**entry, "license": expert.license}
            for entry, expert in zip(coin["experts"], experts, strict=True)
        ],
        "datasets": coin["datasets"],
        "samples": {**samples, "count": sum(len(r) for r in coin["samples"]["rows"].values())},
        "fisher": coin["fisher"],
        "evaluation": coin["evaluation"],
        **measured(measurement),
        "calibration": coin["calibration"],
        "run": {**run, "versions": environment()},
    }


def measured(measurement: "Measurement | None") -> dict[str, Any]:
    """Return measurements as plain data, with each method's NDA averaged over the erasures.

    Args:
        measurement: The measurements; None where nothing was measured.

    Returns:
        `erasures` (a list), `patterns` (how many were measured, of how many), `mean_nda` (percent
        by method, over the single erasures; None where an expert was never right),
        `mean_nda_several` (the same by the number of experts missing at once, from 2) and
        `detection`.
    """
    erasures = [] if measurement is None else measurement.erasures
    by_size: dict[int, list[Erasure]] = {1: []}
    for erasure in erasures:
        by_size.setdefault(1 + len(erasure.beside), []).append(erasure)
    means = {str(size): _means(found) for size, found in sorted(by_size.items())}
    return {
        "erasures": [erasure.dump() for erasure in erasures],
        "patterns": {
            "measured": measurement.patterns if measurement else 0,
            "possible": measurement.possible if measurement else 0,
        },
        "mean_nda": means.pop("1"),
        "mean_nda_several": means,
        "detection": [each.dump() for each in measurement.detections] if measurement else [],
    }


def _means(erasures: "Sequence[Erasure]") -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for method in dict.fromkeys(method for erasure in erasures for method in erasure.scores):
        ndas = [e.scores[method].nda for e in erasures if method in e.scores]
        known = [one for one in ndas if one is not None]
        means[method] = sum(known) / len(known) if len(known) == len(ndas) else None
    return means


def environment() -> dict[str, str]:
    """Return the versions a result depends on, by package."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def place_of(path: str) -> str:
    """Return where a repository lies, in a form that holds from any working directory.

    Args:
        path: A Hub id or a folder.

    Returns:
        The Hub id, or the folder's absolute path.
    """
    folder = local_folder(path)
    return path if folder is None else str(folder.absolute())


def architecture(expert: "Expert") -> str:
    """Return what its library calls an expert's architecture."""
    name = expert.architecture.get("architecture") or expert.architecture.get("model_type")
    return str(name)

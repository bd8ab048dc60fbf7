"""Build coin.json and result.json from a run."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coin_hf.experts.merged_config import JOINED
from coin_hf.recipe import Recipe
from coin_hf.records.coin import FORMAT, REFINING, SETTINGS, CoinRecord
from coin_hf.records.measurements import (
    Calibration,
    Choice,
    Patterns,
    Refinement,
    mean_nda,
)
from coin_hf.records.result import Run
from coin_hf.reports.result import Result
from coin_hf.repository.paths import place_of
from coin_hf.repository.provenance import environment

if TYPE_CHECKING:
    from coin_hf.data.samples import Samples
    from coin_hf.evaluation.erasures import Measurement
    from coin_hf.experts.expert import Expert

EMPTY: Mapping[str, int] = MappingProxyType({})


def coin_record(
    recipe: Recipe,
    experts: "Sequence[Expert]",
    samples: "Samples",
    calibration: Calibration,
) -> CoinRecord:
    """Build the content of `coin.json`: what decoding and repeating the run require.

    Args:
        recipe: The recipe as used: revisions pinned, `auto` replaced by what was chosen.
        experts: The experts, in order.
        samples: The samples, all of them.
        calibration: The coding losses and corruption threshold, measured on the samples.

    Returns:
        The record; folders are absolute paths.
    """
    from coin_hf.fisher import resolve_estimator

    said = recipe.dump()
    every = [expert.label_names for expert in experts]
    # The coded models' names join the experts' where they differ; some hold the sign by nature.
    differ = len(set(every)) > 1 or any(JOINED in name for own in every for name in own or ())
    for expert, entry in zip(experts, said["experts"], strict=True):
        entry |= {"library": expert.library}
        if expert.class_order is not None:
            entry |= {"class_order": expert.class_order.dump()}
        if expert.own_names is not None and (differ or expert.class_order is not None):
            entry |= {"labels": list(expert.own_names)}
        if expert.base is not None:
            entry |= {"base": expert.base.model, "base_revision": expert.base.revision}
    said["fisher"]["estimator"] = resolve_estimator(experts[0].num_classes, recipe.fisher.estimator)
    drawn = {name: list(rows) for name, rows in zip(recipe.draws, samples.rows, strict=True)}
    return CoinRecord.model_validate(
        {
            "format": FORMAT,
            "library": experts[0].library,
            **({} if experts[0].task == "image-classification" else {"task": experts[0].task}),
            "coder": recipe.coder,
            "classes": recipe.classes,
            "betas": said["betas"],
            "lam": said["lam"] if recipe.coder == "coin" else None,
            "dtype": recipe.dtype,
            **({recipe.coder: said[recipe.coder]} if recipe.coder in SETTINGS else {}),
            **recorded_steps(recipe),
            "experts": said["experts"],
            "datasets": said["datasets"],
            "samples": {**said["samples"], "rows": drawn},
            "fisher": said["fisher"],
            "evaluation": said["evaluation"],
            "calibration": calibration,
            "versions": environment(),
        }
    ).moved(place_of)


def recorded_steps(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's settings of refinement and augmentation, where used.

    Args:
        recipe: The recipe.

    Returns:
        `refine` and `augment` as plain data, each only where it is used.
    """
    said = recipe.dump()
    used = {"refine": bool(recipe.refine), "augment": recipe.enlarges}
    return {key: said[key] for key in REFINING if used[key]}


def result_record(
    coin: CoinRecord,
    experts: "Sequence[Expert]",
    choice: Choice | None,
    measurement: "Measurement",
    run: Run,
    *,
    refinements: Sequence[Refinement] = (),
    damaged: Mapping[str, int] = EMPTY,
) -> Result:
    """Build the content of `result.json`: every number of a run, and what it was measured on.

    Args:
        coin: The content of `coin.json`.
        experts: The experts, in order.
        choice: How the coder's hyperparameter was chosen, if it was.
        measurement: The measurements.
        run: Its machine, cost and versions.
        refinements: The outcome of each step of `refine`.
        damaged: Damaged rows left out of the samples, by `dataset:split`.

    Returns:
        The record; folders are absolute paths.
    """
    said = coin.dump()
    count = sum(len(rows) for rows in said["samples"].pop("rows").values())
    shared = ("format", "library", "task", "coder", "classes", "betas", "lam", "dtype", *SETTINGS,
              *REFINING, "datasets", "fisher", "evaluation", "calibration")  # fmt: skip
    return Result.model_validate(
        {
            **{key: said[key] for key in shared if key in said},
            "architecture": architecture(experts[0]),
            "num_classes": experts[0].num_classes,
            "choice": choice,
            "refinements": list(refinements) or None,
            "experts": [
                {**entry, "license": expert.license}
                for entry, expert in zip(said["experts"], experts, strict=True)
            ],
            "samples": {**said["samples"], "count": count},
            **measured(measurement, damaged),
            "run": run,
        }
    )


def measured(measurement: "Measurement | None", drawn: Mapping[str, int] = EMPTY) -> dict[str, Any]:
    """Return the fields of a result that hold measurements.

    Args:
        measurement: The measurements; None if nothing was measured.
        drawn: Damaged rows left out of the samples, by `dataset:split`.

    Returns:
        `erasures`, `patterns`, `mean_nda`, `mean_nda_several`, `detection` and `damaged`.
    """
    if measurement is None:
        return {
            "erasures": [],
            "patterns": Patterns(),
            "mean_nda": {},
            "mean_nda_several": {},
            "detection": [],
            "damaged": None,
        }
    means = mean_nda(measurement.erasures)
    return {
        "erasures": measurement.erasures,
        "patterns": measurement.patterns,
        "mean_nda": means.pop(1),
        "mean_nda_several": {str(size): found for size, found in means.items()},
        "detection": measurement.detections,
        "damaged": {**drawn, **measurement.damaged} or None,
    }


def architecture(expert: "Expert") -> str:
    """Return the library's name for an expert's architecture.

    Args:
        expert: The expert.

    Returns:
        timm's name, or transformers' `model_type`.
    """
    name = expert.architecture.get("architecture") or expert.architecture.get("model_type")
    return str(name)

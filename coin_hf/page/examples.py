"""A few inputs of the test data, for a page to start from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from coin_hf.data.opening import Datasets
from coin_hf.data.texts import open_rows
from coin_hf.encoding.inputs import owner_of
from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError, boundary
from coin_hf.hub.client import local_folder

PER_EXPERT = 2
"""Examples of each expert's data."""
MOST = 8
"""Examples of all."""


@dataclass(frozen=True)
class Example:
    """One input of an expert's test data."""

    expert: str
    value: Any
    """The path of an image file, a text, or a pair of texts."""
    label: str | None
    """Its class, if it is known."""


def draw_examples(ensemble: CodedEnsemble, folder: Path) -> tuple[list[Example], str | None]:
    """Draw a few inputs of the experts' test data, where it can be opened.

    Datasets of the Hub are streamed, so that none is downloaded whole.

    Args:
        ensemble: The ensemble, its experts loaded.
        folder: Where images are written.

    Returns:
        The examples, and why there are none; None if there are.
    """
    opened, found = Datasets(), list[Example]()
    per_expert = min(PER_EXPERT, max(1, MOST // len(ensemble.names)))
    try:
        for name in ensemble.names[:MOST]:
            found += _of_expert(ensemble, name, opened, per_expert, folder)
    except InputError as error:
        return [], str(error)
    return found, None


def _of_expert(
    ensemble: CodedEnsemble, name: str, opened: Datasets, count: int, folder: Path
) -> list[Example]:
    """Draw inputs of one expert's test data."""
    recipe, experts = ensemble.coin.recipe, ensemble.experts or ()
    key = next(block.dataset for block in recipe.experts if block.label == name)
    block = recipe.datasets[key]
    if local_folder(block.path) is None and not constants.HF_HUB_OFFLINE:
        block = block.model_copy(update={"streaming": True})
    with boundary(f"the test data of '{name}' cannot be read", "give an input of your own"):
        rows = open_rows(
            ensemble.coded.preprocessing,
            key,
            block,
            recipe.evaluation.split,
            ensemble.coded.num_classes,
            opened,
            owner_of(recipe, name, key, experts),
        )
        drawn = rows.draw(count, seed=(recipe.samples.seed, 1))
        known = ensemble.coded.label_names
        return [
            Example(
                name,
                _written(row.value, folder / f"{ensemble.names.index(name)}-{k}.png"),
                None if row.label is None else known[row.label] if known else f"LABEL_{row.label}",
            )
            for k, row in enumerate(drawn)
        ]


def _written(value: Any, path: Path) -> Any:
    """Write an image to a file, without loss; keep texts."""
    if isinstance(value, str | tuple):
        return value
    value.save(path)
    return str(path)

"""What a Fisher was computed from: the expert, its revision, and the samples."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coin_hf.recipe.blocks import DatasetBlock, FisherBlock, set_aside
from coin_hf.records.coin import ClassOrder, CoinRecord

FISHER_FORMAT = "1"


def samples_hash(draws: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of the samples a Fisher was computed on.

    Args:
        draws: For each draw the dataset's revision, configuration, split, and the rows used.

    Returns:
        SHA-256, hexadecimal; equal hashes mean the same inputs in the same order.
    """
    keys = ("revision", "config", "split", "rows")
    text = json.dumps([[draw.get(key) for key in keys] for draw in draws], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def draws_of(coin: CoinRecord) -> list[dict[str, Any]]:
    """Return the draws that the Fishers of a coded repository were computed on.

    Args:
        coin: The content of `coin.json`.

    Returns:
        One entry for each draw: the dataset's path, revision, configuration, split, and the rows
        used, without those held out.
    """
    return drawn(coin.draws, coin.samples.rows, coin.datasets, coin.samples.held_out)


def drawn(
    draws: Mapping[str, str],
    rows: Mapping[str, Sequence[int]],
    datasets: Mapping[str, DatasetBlock],
    held_out: float,
) -> list[dict[str, Any]]:
    """Describe draws of samples by what determines the inputs.

    Args:
        draws: The dataset of each draw, by name.
        rows: The rows of each draw, by name.
        datasets: The datasets by name.
        held_out: Share of each draw held out of the Fisher.

    Returns:
        As `draws_of`.
    """
    found = []
    for name, positions in rows.items():
        said = datasets[draws[name]].model_dump(mode="json")
        used = len(positions) - set_aside(held_out, len(positions))
        known = {key: said.get(key) for key in ("path", "revision", "config", "split")}
        found.append({**known, "rows": list(positions[:used])})
    return found


def fisher_metadata(
    *,
    model: str,
    revision: str,
    draws: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    estimator: FisherBlock,
    tied: Mapping[str, str],
    class_order: ClassOrder | None = None,
) -> dict[str, str]:
    """Build the metadata of a Fisher file: its expert, samples and estimator.

    Args:
        model: The expert's Hub id, or the name of its folder.
        revision: Its commit SHA, or `sha256:...` of the folder.
        draws: The samples, from `draws_of`.
        versions: Package versions.
        estimator: How it was computed: the recipe's `fisher`, `auto` resolved.
        tied: Tied parameters by name, with the name they are tied to.
        class_order: The order of the expert's own classes, if the Fisher's rows have another.

    Returns:
        Strings by key, as safetensors stores them.
    """
    place = model if not Path(model).is_absolute() else f"./{Path(model).name}"
    return {
        "format": "pt",
        "coin_hf_fisher": FISHER_FORMAT,
        "model": place,
        "revision": revision,
        "estimator": estimator.estimator,
        **({"probes": str(estimator.probes)} if estimator.estimator == "probe" else {}),
        "samples": str(sum(len(draw["rows"]) for draw in draws)),
        "samples_sha256": samples_hash(draws),
        "datasets": json.dumps(
            [{"revision": draw["revision"], "split": draw["split"]} for draw in draws]
        ),
        "tied": json.dumps(dict(sorted(tied.items()))),
        "versions": json.dumps(dict(versions)),
        **({"class_order": class_order.model_dump_json()} if class_order else {}),
    }

"""Fishers as files: what they hold, what they were computed from, and whose they are.

`fisher/<expert>.safetensors` holds one tensor for each parameter, named and shaped like it. In half
precision each value is rounded to bfloat16, whose relative error is at most u = 2^-8 over the whole
range of float32 (Fishers span ten decades and more, which float16 does not). With lam >= 0 this
moves an entry of theta_c by at most u / 2 / (1 - u) of the distance between the smallest and the
largest of the experts' values there: less than two parts in a thousand of what the experts differ.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coin_hf.errors import InputError
from coin_hf.hub.layout import FISHERS

FISHER_FORMAT = "1"
Precision = Literal["half"] | bool


def fisher_path(expert: str) -> str:
    """Return where an expert's Fisher lies in a repository.

    Args:
        expert: The expert's name.

    Returns:
        A path relative to the repository.
    """
    return f"{FISHERS}/{quote(expert, safe=' ')}.safetensors"


def rounded(fisher: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Round a Fisher to the precision it will be saved in.

    Args:
        fisher: Diagonal Fisher by parameter name.
        precision: `half` for bfloat16; otherwise it stays as it is.

    Returns:
        The Fisher; encoding with it gives what re-coding will give.
    """
    if precision == "half":
        return {name: value.to(torch.bfloat16) for name, value in fisher.items()}
    return dict(fisher)


def samples_hash(draws: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of the samples a Fisher was taken on.

    Args:
        draws: For each draw the dataset's revision, configuration, split, and the rows used.

    Returns:
        SHA-256, hexadecimal; equal ones mean the same inputs in the same order.
    """
    keys = ("revision", "config", "split", "rows")
    text = json.dumps([[draw.get(key) for key in keys] for draw in draws], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def draws_of(coin: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the draws on which the Fishers of a coded repository were taken.

    Args:
        coin: The content of `coin.json`.

    Returns:
        One entry for each draw: the dataset's path, revision, configuration, split, and the rows
        used, without those held out.
    """
    keys = coin["samples"].get("draws") or {e["name"]: e["dataset"] for e in coin["experts"]}
    found = []
    for name, rows in coin["samples"]["rows"].items():
        block = coin["datasets"][keys[name]]
        used = len(rows) - int(coin["samples"].get("held_out", 0) * len(rows))
        known = {key: block.get(key) for key in ("path", "revision", "config", "split")}
        found.append({**known, "rows": list(rows[:used])})
    return found


def fisher_metadata(
    *,
    model: str,
    revision: str,
    draws: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    estimator: Mapping[str, Any],
    tied: Mapping[str, str],
) -> dict[str, str]:
    """Build what a Fisher's file says of its origin.

    Args:
        model: The expert's Hub id, or the name of its folder.
        revision: Its commit SHA, or `sha256:...` of the folder.
        draws: The samples, from `draws_of`.
        versions: Package versions.
        estimator: How it was computed: the recipe's `fisher`.
        tied: Names of parameters that are another one's tensor, with that one's name.

    Returns:
        Text by text, as safetensors keeps it.
    """
    place = model if not Path(model).is_absolute() else f"./{Path(model).name}"
    return {
        "format": "pt",
        "coin_hf_fisher": FISHER_FORMAT,
        "model": place,
        "revision": revision,
        "estimator": str(estimator["estimator"]),
        **({"probes": str(estimator["probes"])} if estimator["estimator"] == "probe" else {}),
        "samples": str(sum(len(draw["rows"]) for draw in draws)),
        "samples_sha256": samples_hash(draws),
        "datasets": json.dumps(
            [{"revision": draw["revision"], "split": draw["split"]} for draw in draws]
        ),
        "tied": json.dumps(dict(sorted(tied.items()))),
        "versions": json.dumps(dict(versions)),
    }


def write_fisher(path: Path, fisher: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one expert's Fisher.

    Args:
        path: The file.
        fisher: Diagonal Fisher by parameter name.
        metadata: From `fisher_metadata`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: value.detach().cpu().contiguous() for name, value in fisher.items()}
    save_file(values, path, metadata=metadata)


def check_fisher(
    path: Path,
    *,
    expert: str,
    revision: str,
    shapes: Mapping[str, tuple[int, ...]],
    samples_sha256: str | None,
) -> dict[str, str]:
    """Check that a Fisher's file belongs to an expert, before any of its values is read.

    Args:
        path: The file.
        expert: The expert's name, for messages.
        revision: The expert's commit SHA, or `sha256:...` of its folder.
        shapes: The shapes of all tensors of the expert's checkpoint, by name.
        samples_sha256: Hash of the samples it must have been taken on; None for any.

    Returns:
        The file's metadata.

    Raises:
        InputError: If it is missing, damaged, no Fisher, another expert's or revision's, of other
            names or shapes, or taken on other samples.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(
            f"there is no Fisher of expert '{expert}' ({path.name}): encode again with "
            "`fisher: {save: true}`"
        ) from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"the Fisher of expert '{expert}' is damaged or cut short ({error}): download it again"
        ) from error
    if said.get("coin_hf_fisher") != FISHER_FORMAT:
        raise InputError(
            f"{path} is not a Fisher this coin-hf can read (format "
            f"{said.get('coin_hf_fisher', 'none')}): make one with `coin-hf fisher`"
        )
    if said["revision"] != revision:
        raise InputError(
            f"the Fisher in {path.name} belongs to {said['model']} at revision {said['revision']}, "
            f"but expert '{expert}' is at {revision}: compute it for that revision"
        )
    tied = json.loads(said["tied"])
    faults = [f"no parameter '{name}'" for name in sorted(found.keys() - shapes.keys())]
    faults += [
        f"'{name}' of shape {shape}, not {shapes[name]}"
        for name, shape in sorted(found.items())
        if name in shapes and shape != shapes[name]
    ]
    faults += [f"no parameter '{name}'" for name in sorted(tied.keys() - shapes.keys())]
    if faults:
        raise InputError(
            f"the Fisher in {path.name} does not fit expert '{expert}', which has "
            f"{'; '.join(faults)}: compute it for that expert"
        )
    if samples_sha256 not in (None, said["samples_sha256"]):
        raise InputError(
            f"the Fisher of expert '{expert}' was taken on other samples than the coded model's "
            "(every Fisher must use the same ones): compute it with `coin-hf fisher --like TARGET`"
        )
    return said

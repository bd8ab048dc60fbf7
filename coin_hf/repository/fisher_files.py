"""Save, load and check Fisher files, which record their expert and samples.

`fisher/<expert>.safetensors` holds one tensor for each parameter, with its name and shape. In half
precision each value is rounded to bfloat16, whose relative error is at most u = 2^-8 over the whole
range of float32 (Fishers span ten decades or more, beyond float16). With lam >= 0 this moves an
entry of theta_c by at most u / 2 / (1 - u) of the distance between the smallest and the largest of
the experts' values there: less than two parts in a thousand of their spread.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coin_hf.errors import InputError
from coin_hf.hub.client import locate
from coin_hf.hub.layout import FISHERS
from coin_hf.recipe.text_files import parse_json
from coin_hf.repository.atomic import whole_file
from coin_hf.repository.fisher_origin import FISHER_FORMAT
from coin_hf.repository.provenance import environment
from coin_hf.repository.tensor_files import write_tensors

RECOMPUTE = "compute that Fisher again with `coin-hf fisher`"
FLOATING = {"F64", "F32", "F16", "BF16"}
"""What safetensors calls the types that a Fisher may have."""
Precision = Literal["half"] | bool


def fisher_path(expert: str) -> str:
    """Return the path of an expert's Fisher in a repository.

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
        precision: `half` for bfloat16; otherwise it is unchanged.

    Returns:
        The Fisher; encoding with it gives the same result as re-coding from its file.
    """
    if precision == "half":
        return {name: value.to(torch.bfloat16) for name, value in fisher.items()}
    return dict(fisher)


def write_fisher(path: Path, fisher: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one expert's Fisher.

    Args:
        path: The file.
        fisher: Diagonal Fisher by parameter name.
        metadata: From `fisher_metadata`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, fisher, {**metadata, "parameters": str(len(fisher))})


def save_fisher(
    path: str | Path,
    fisher: Mapping[str, Tensor],
    *,
    model: str = "",
    revision: str = "",
    precision: Precision = True,
) -> None:
    """Save one expert's Fisher to its own file, completely or not at all.

    A Fisher for others to code with must also record its samples: make it with `coin-hf fisher`, or
    with `fisher: {save: true}` in a recipe.

    Args:
        path: The file, such as `fisher/low.safetensors`.
        fisher: Diagonal Fisher by parameter name, from `diagonal_fisher`.
        model: The expert's Hub id or folder, for the file's metadata.
        revision: Its commit SHA.
        precision: `half` rounds to bfloat16.
    """
    metadata = {
        "format": "pt",
        "coin_hf_fisher": FISHER_FORMAT,
        "model": model,
        "revision": revision,
        "tied": "{}",
        "samples_sha256": "",
        "versions": json.dumps(environment()),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        write_fisher(draft, rounded(fisher, precision), metadata)


def load_fisher(
    repo_or_path: str | Path, expert: str | None = None, *, revision: str | None = None
) -> dict[str, Tensor]:
    """Load one expert's Fisher.

    Args:
        repo_or_path: A Hub id or a folder that holds `fisher/<expert>.safetensors`, such as a coded
            model's or the expert's own; or the file itself.
        expert: The expert's name; by default the only one with a Fisher there.
        revision: Branch, tag or commit on the Hub.

    Returns:
        Tensors of the parameters' shapes by their names in the expert's checkpoint, float32
        (float64 if saved so), for `fisher_average`.

    Raises:
        InputError: If there is none, there are several and `expert` is not given, or the file is
            damaged or not a Fisher.
    """
    path = Path(repo_or_path).expanduser()
    if not path.is_file():
        folder = locate(str(repo_or_path), revision, [f"{FISHERS}/*"])
        held = sorted(file.stem for file in (folder / FISHERS).glob("*.safetensors"))
        if expert is None and len(held) == 1:
            path = folder / FISHERS / f"{held[0]}.safetensors"
        elif expert is not None and (folder / fisher_path(expert)).is_file():
            path = folder / fisher_path(expert)
        else:
            which = f"no Fisher of '{expert}'" if expert else "no single Fisher"
            listed = ", ".join(map(unquote, held)) or "none"
            raise InputError(f"'{repo_or_path}' holds {which}: it has {listed}; name an expert")
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}): download it again") from error
    if said.get("coin_hf_fisher") != FISHER_FORMAT:
        raise InputError(f"{path} is not a Fisher: make one with `coin-hf fisher`")
    wide = {name: torch.promote_types(value.dtype, torch.float32) for name, value in found.items()}
    return {name: value.to(wide[name]) for name, value in found.items()}


def check_fisher(
    path: Path,
    *,
    expert: str,
    revision: str,
    shapes: Mapping[str, tuple[int, ...]],
    samples_sha256: str | None,
) -> dict[str, str]:
    """Check that a Fisher file belongs to an expert, before reading its values.

    Args:
        path: The file.
        expert: The expert's name, for messages.
        revision: The expert's commit SHA, or `sha256:...` of its folder.
        shapes: The shapes of all tensors of the expert's checkpoint, by name.
        samples_sha256: Hash of the samples it must have been computed on; None for any.

    Returns:
        The file's metadata.

    Raises:
        InputError: If it does not exist, is damaged or not a Fisher, belongs to another expert or
            revision, has other names or shapes, or was computed on other samples.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: tuple(each.get_shape()) for name, each in slices.items()}
            kinds = {each.get_dtype() for each in slices.values()}
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
    _check_metadata(said, path.name, len(found))
    if said["revision"] != revision:
        raise InputError(
            f"the Fisher in {path.name} belongs to {said['model']} at revision {said['revision']}, "
            f"but expert '{expert}' is at {revision}: compute it for that revision"
        )
    if not kinds <= FLOATING or not found:
        raise InputError(
            f"the Fisher in {path.name} holds {', '.join(sorted(kinds)) or 'no tensor'}, not "
            f"floating-point numbers: {RECOMPUTE}"
        )
    tied = tied_in(said, path.name)
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


def tied_in(metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """Read the tied parameters from a Fisher's metadata.

    Args:
        metadata: The metadata.
        name: The file's name, for messages.

    Returns:
        Tied parameters by name, with the name they are tied to.

    Raises:
        InputError: If they are not recorded as `fisher_metadata` does.
    """
    what = f"the tied parameters in the metadata of {name}"
    tied = parse_json(metadata.get("tied", ""), what, RECOMPUTE)
    if not all(isinstance(value, str) for value in tied.values()):
        raise InputError(f"{what} are no names: {RECOMPUTE}")
    return tied


def _check_metadata(metadata: Mapping[str, str], name: str, count: int) -> None:
    """Refuse a Fisher that does not say what it is of, or lacks parameters."""
    if metadata.get("parameters", str(count)) != str(count):
        raise InputError(
            f"{name} holds the Fisher of {count} parameters, not of {metadata['parameters'][:20]}: "
            f"{RECOMPUTE}"
        )
    lacking = [key for key in ("model", "revision", "samples_sha256") if key not in metadata]
    if lacking:
        raise InputError(f"the metadata of {name} lacks {', '.join(lacking)}: {RECOMPUTE}")

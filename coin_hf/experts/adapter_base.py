"""Find and pin the base of an adapter, without loading either."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from coin_hf.errors import InputError, shown
from coin_hf.experts.adapter_config import read_adapter_config
from coin_hf.hub.client import local_folder, pin


@dataclass(frozen=True)
class Base:
    """The base of an adapter."""

    model: str
    """Hub id or folder."""
    revision: str
    """Commit SHA, or `sha256:...` of the folder."""


def base_of(folder: Path, repo: str, name: str, place: str | None, revision: str | None) -> Base:
    """Find and pin the base of an adapter.

    Args:
        folder: The adapter.
        repo: Hub id or folder it came from.
        name: The expert's name, for messages.
        place: Hub id or folder of the base; None for the one that the adapter names.
        revision: The base's revision; None for the one that the adapter names, or the newest.

    Returns:
        The base, pinned.

    Raises:
        InputError: If the adapter names none, or one that it may not name, or it cannot be found.
    """
    said = read_adapter_config(folder, name)
    found, way_out = place, "give another `base` with the expert"
    if found is None:
        found = said.get("base_model_name_or_path")
        if not isinstance(found, str) or not found.isprintable() or not found.strip():
            raise InputError(
                f"expert '{name}' is an adapter that names no base (base_model_name_or_path is "
                f"{shown(found)}): give its Hub id or folder as `base` with the expert"
            )
        if _of_the_hub(repo) and not _hub_id(found):
            raise InputError(
                f"expert '{name}' is an adapter from the Hub whose base is the folder "
                f"{shown(found)} of its maker's machine: give the base's Hub id or folder as "
                "`base` with the expert"
            )
        if revision is None and isinstance(said.get("revision"), str) and _hub_id(found):
            revision = said["revision"]
    try:
        return Base(model=found, revision=pin(found, revision))
    except InputError as error:
        raise InputError(f"the base of expert '{name}': {error}; or {way_out}") from error


def _of_the_hub(repo: str) -> bool:
    """Say whether an adapter is a Hub id, or a folder of a repository downloaded from there."""
    folder = local_folder(repo)
    return folder is None or folder.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve())


def _hub_id(place: str) -> bool:
    """Say whether a text is a Hub id and no folder of this machine."""
    try:
        return "\\" not in place and local_folder(place) is None
    except InputError:
        return False

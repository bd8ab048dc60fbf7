"""Find the file that holds each expert's tensors; write one for adapters, which have none."""

from pathlib import Path

from coin_hf.experts.adapter_config import is_adapter
from coin_hf.hub.client import fetch
from coin_hf.hub.layout import CHECKPOINT_FILES
from coin_hf.recipe.blocks import ExpertBlock


def checkpoint_of(block: ExpertBlock, scratch: Path) -> Path:
    """Return a folder with an expert's network in its library's format.

    Args:
        block: The expert, pinned.
        scratch: A folder for networks that no repository holds: an adapter is merged and saved
            there as its coded model is, so that the bits are those that were coded.

    Returns:
        The folder.

    Raises:
        InputError: If the expert cannot be found or read.
    """
    folder = fetch(block.model, block.revision, CHECKPOINT_FILES)
    if not is_adapter(folder):
        return folder
    from coin_hf.experts.expert import load_expert  # only this loads networks

    place = scratch / str(sum(1 for _ in scratch.iterdir()))
    load_expert(
        block.model,
        revision=block.revision,
        name=block.label,
        base=block.base,
        base_revision=block.base_revision,
    ).save_pretrained(place)
    return place

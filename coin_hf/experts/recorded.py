"""Load an expert as a coded repository records it: pinned, in its dtype, its rows placed."""

from collections.abc import Sequence

import torch

from coin_hf.experts.classes import with_labels
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.heads import place
from coin_hf.experts.one_dtype import cast_expert
from coin_hf.records.coin import ExpertRecord


def load_recorded(
    record: ExpertRecord,
    names: Sequence[str] | None,
    dtype: torch.dtype,
    *,
    device: torch.device | str | None = None,
    where: str | None = None,
) -> Expert:
    """Load an expert as it was coded.

    Args:
        record: Its entry in `coin.json`.
        names: The class names of all rows, if known.
        dtype: The coded models' floating dtype.
        device: Device of the network; by default the CPU.
        where: Its present Hub id or folder; by default the recorded one, at its revision.

    Returns:
        The expert, with a row for each class that was coded.

    Raises:
        InputError: If it cannot be found or read, or is not the expert that was coded.
    """
    recorded = where is None
    expert = load_expert(
        record.model if where is None else where,
        revision=record.revision if recorded else None,
        library=record.library,
        device=device,
        name=record.name,
        base=record.base if recorded else None,  # of an expert that lies elsewhere now, its own
        base_revision=record.base_revision if recorded else None,
    )
    expert = with_labels(expert, record.labels)
    order = record.class_order
    if order is not None:
        expert = place(expert, order, None if order.width is None else names)
    cast_expert(expert, dtype)
    return expert

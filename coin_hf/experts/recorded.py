"""Load experts as a coded repository records it: pinned, in their dtype, their rows placed."""

from collections.abc import Sequence

import torch

from coin_hf.errors import InputError
from coin_hf.experts.classes import with_labels
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.heads import place
from coin_hf.experts.on_disk import keep_on_disk
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


def load_all_recorded(
    records: Sequence[ExpertRecord],
    names: Sequence[str] | None,
    dtype: torch.dtype,
    *,
    device: torch.device | str | None = None,
    where: bool | Sequence[str] = True,
    on_disk: bool = False,
) -> list[Expert]:
    """Load the experts of a coded repository.

    Args:
        records: Their entries in `coin.json`.
        names: The class names of all rows, if known.
        dtype: The coded models' floating dtype.
        device: Device of the networks; by default the CPU.
        where: Their present Hub ids or folders, in order; by default the recorded ones.
        on_disk: Keep their weights in mapped temporary files (`keep_on_disk`).

    Returns:
        The experts, in order.

    Raises:
        InputError: If one cannot be found or read, or is not the expert that was coded, or there
            are not as many places as experts.
    """
    places: Sequence[str | None] = [None] * len(records) if isinstance(where, bool) else where
    if len(places) != len(records):
        raise InputError(f"expected the places of {len(records)} experts, got {len(places)}")
    experts = []
    for record, at in zip(records, places, strict=True):
        experts.append(load_recorded(record, names, dtype, device=device, where=at))
        if on_disk:
            keep_on_disk(experts[-1])
    return experts


def recorded_names(record: ExpertRecord, rows: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the names of an expert's own classes, as far as its record says them.

    Args:
        record: Its entry in `coin.json`.
        rows: The class names of all rows, if known.

    Returns:
        The names, in the order of its own classes; None if they are not known.
    """
    if record.labels is not None:
        return tuple(record.labels)
    order = record.class_order
    return rows if rows is None or order is None else tuple(rows[row] for row in order.rows)

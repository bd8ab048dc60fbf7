"""Choose and set the floating dtype in which experts run and the coded model is saved."""

import warnings
from collections.abc import Sequence
from functools import reduce

import torch

from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert
from coin_hf.recipe.blocks import DType


def floating_dtype(expert: Expert) -> torch.dtype:
    """Return the floating dtype of a network's parameters, the widest where they differ.

    Args:
        expert: The expert.

    Returns:
        The dtype; float32 where no parameter is floating.
    """
    found = {value.dtype for value in expert.parameters.values() if value.is_floating_point()}
    return reduce(torch.promote_types, found) if found else torch.float32


def common_dtype(experts: Sequence[Expert], dtype: DType | None = None) -> torch.dtype:
    """Choose the dtype of a run: that which is asked for, else the widest among the experts.

    Args:
        experts: The experts.
        dtype: What the recipe asks for; None for the widest, with a warning where they differ.

    Returns:
        A floating dtype.
    """
    held = {expert.name: floating_dtype(expert) for expert in experts}
    wanted = reduce(torch.promote_types, held.values())
    if dtype is not None:
        wanted = getattr(torch, dtype)
    elif len(set(held.values())) > 1:
        each = ", ".join(f"'{name}' {_plain(kind)}" for name, kind in held.items())
        warnings.warn(
            f"the experts are stored in several dtypes ({each}), and are coded in the widest, "
            f"{_plain(wanted)}: set `dtype` in the recipe for another",
            stacklevel=3,
        )
    return wanted


@torch.no_grad()
def cast_expert(expert: Expert, dtype: torch.dtype) -> bool:
    """Cast a network's floating parameters and persistent buffers, in place.

    Buffers that no file holds are left in the dtype in which their library computes them.

    Args:
        expert: The expert.
        dtype: A floating dtype.

    Returns:
        Whether anything had another dtype.

    Raises:
        InputError: If a value is not finite in that dtype.
    """
    parameters, changed = dict(expert.model.named_parameters()), False
    for name, value in expert.model.state_dict(keep_vars=True).items():
        if not value.is_floating_point() or value.dtype == dtype:
            continue
        rounded = value.detach().to(dtype)
        if not rounded.isfinite().all():
            raise InputError(
                f"expert '{expert.name}' has a value in '{name}' that is too large for "
                f"{_plain(dtype)}: choose a `dtype` of a wider range, such as bfloat16 or float32"
            )
        parameters.get(name, value).data = rounded
        changed = True
    return changed


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Log training by Accelerate's trackers: TensorBoard, Weights & Biases, trackio and others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from coin_hf.errors import InputError

PROJECT = "coin-hf"


def logging_accelerator(
    log_with: str | None, folder: str | Path, settings: Mapping[str, Any], **kwargs: Any
) -> Accelerator:
    """Make an Accelerator that logs what is given to its `log`.

    Args:
        log_with: Name of a tracker of Accelerate, or `all` for those that are installed; None to
            log nothing.
        folder: Where trackers that write files put them.
        settings: What the run is given, noted by the tracker; values that are no text, number or
            truth value are noted as text.
        **kwargs: Further arguments of the Accelerator.

    Returns:
        The Accelerator, its trackers started; `end_training` closes them.

    Raises:
        InputError: If there is no such tracker, or it is not installed.
    """
    if log_with is None:
        return Accelerator(**kwargs)
    available = [str(each) for each in get_available_trackers()]
    if log_with != "all" and log_with not in available:
        known = log_with in LOGGER_TYPE_TO_CLASS
        wrong = f"is not installed (`pip install {log_with}`)" if known else "does not exist"
        others = f"installed are {', '.join(available)}" if available else "none is installed"
        raise InputError(f"the tracker '{log_with}' {wrong}: {others}")
    if not available:
        raise InputError("no tracker is installed to log with: `pip install tensorboard`")
    accelerator = Accelerator(log_with=log_with, project_dir=str(folder), **kwargs)
    plain = {k: v if isinstance(v, str | int | float) else str(v) for k, v in settings.items()}
    accelerator.init_trackers(PROJECT, config=plain)
    return accelerator


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested mappings to numbers by path, as trackers take them.

    Args:
        values: Numbers and mappings of them by name; what is neither is left out.
        prefix: What stands before each name.

    Returns:
        The numbers by `outer/inner`.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = value
    return found

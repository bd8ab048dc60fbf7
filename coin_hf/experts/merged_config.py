"""Build a coded model's config.json from those of its experts, without any network."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from coin_hf.records.coin import ClassOrder

ORIGIN = ("tag", "license", "origin_url", "url", "file", "source", "hf_hub_id", "hf_hub_filename",
          "custom_load", "paper_ids", "paper_name")  # fmt: skip
"""Keys of timm's `pretrained_cfg` that describe the origin of the weights, not their use."""

JOINED = " / "
"""What stands between the names of one row that several experts name differently."""
Names = tuple[str, ...]


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Bring timm's older, flat config.json into today's form.

    Args:
        config: The content of a config.json of timm.

    Returns:
        The same with what describes the input under `pretrained_cfg`; today's form as it is.
    """
    if "pretrained_cfg" in config or "architecture" not in config:
        return dict(config)
    outer = ("architecture", "num_classes", "num_features", "label_names", "label_descriptions")
    made = {key: config[key] for key in outer if key in config}
    if "labels" in config:
        made["label_names"] = config["labels"]
    inner = {k: v for k, v in config.items() if k not in (*outer, "labels", "model_args")}
    if "model_args" in config:
        made["model_args"] = config["model_args"]
    return {**made, "pretrained_cfg": inner}


def merged_names(all_names: Sequence[Names | None]) -> Names | None:
    """Join the experts' names for each class where they differ ("cat / truck").

    Args:
        all_names: Each expert's class names, or None if it has none.

    Returns:
        The coded model's names; None if no expert has any.
    """
    known = [names for names in all_names if names is not None]
    if not known:
        return None
    return tuple(JOINED.join(dict.fromkeys(column)) for column in zip(*known, strict=True))


def placed_names(own: Sequence[str] | None, order: ClassOrder) -> tuple[str, ...] | None:
    """Name the rows by the classes of an expert that has them all.

    Args:
        own: Its names in its own order, if any.
        order: The rows of its classes.

    Returns:
        K names by row; None if it has none, or there are rows of other classes.
    """
    if own is None or order.count > len(order.rows):
        return None
    by_row = dict(zip(order.rows, own, strict=True))
    return tuple(by_row[row] for row in range(order.count))


def timm_config(config: Mapping[str, Any], num_classes: int, names: Names | None) -> dict[str, Any]:
    """Build a coded timm model's config.json.

    Args:
        config: Expert 0's config.json.
        num_classes: K.
        names: The class names, if any.

    Returns:
        Expert 0's config.json without its origin, in a form that transformers reads too.
    """
    made: dict[str, Any] = copy.deepcopy(dict(config))
    made["num_classes"] = num_classes
    # timm needs it once, beside `architecture`; transformers rejects a duplicate.
    model_args = dict(made.pop("model_args", None) or {})
    model_args.pop("num_classes", None)
    if model_args:
        made["model_args"] = model_args
    declared = made.get("pretrained_cfg") or {}
    made["pretrained_cfg"] = {k: v for k, v in declared.items() if k not in ORIGIN}
    made["pretrained_cfg"]["num_classes"] = num_classes
    if list(names or ()) != made.get("label_names"):
        made.pop("label_descriptions", None)
        made.pop("label_names", None)
        if names is not None:
            made["label_names"] = list(names)
    return made


def transformers_config(config: Mapping[str, Any], names: Names | None) -> dict[str, Any]:
    """Build a coded transformers model's config.json.

    Args:
        config: config.json of a coded model of the same architecture.
        names: The class names, if any.

    Returns:
        The same config.json with these names.
    """
    if names is None:
        return dict(config)
    return {
        **config,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def names_in(config: Mapping[str, Any], library: str, num_classes: int) -> Names | None:
    """Read the class names from an expert's config.json.

    Args:
        config: Its content.
        library: `timm` or `transformers`.
        num_classes: K.

    Returns:
        K names, or None if it has none of its own. Names of other classes than its K are left out
        with a warning; a class without a name is called LABEL_k, as transformers does.
    """
    if library == "timm":
        return _timm_names(config.get("label_names"), num_classes)
    by_number = config.get("id2label") or {}
    names = tuple(str(by_number.get(str(i), f"LABEL_{i}")) for i in range(num_classes))
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return None if generic else names


def classes_in(config: Mapping[str, Any], library: str) -> tuple[int, Names | None]:
    """Read the number of classes and their names from a coded model's config.json.

    Args:
        config: Its content, not in timm's older, flat form.
        library: `timm` or `transformers`.

    Returns:
        K, and K names or None.
    """
    if library == "timm":
        count = int(config["num_classes"])
    else:  # transformers writes two classes without names as none
        count = len(config.get("id2label") or (0, 1))
    return count, names_in(config, library, count)


def _timm_names(labels: Any, num_classes: int) -> Names | None:
    """Read timm's `label_names`: a list of K names, or a mapping from class numbers to names."""
    if not labels:
        return None
    numbers = [str(number) for number in range(num_classes)]
    if isinstance(labels, Mapping):
        known, fits = labels, labels.keys() <= set(numbers)
    else:
        fits = isinstance(labels, list) and len(labels) == num_classes
        known = dict(zip(numbers, labels, strict=True)) if fits else {}
    if not fits:
        warnings.warn(
            f"`label_names` in config.json are not the names of its {num_classes} classes (it has "
            f"{len(labels) if isinstance(labels, list | dict) else 1}), and are left out: classes "
            "are then known by number alone",
            stacklevel=5,
        )
        return None
    names = tuple(str(known.get(number, f"LABEL_{number}")) for number in numbers)
    generic = all(name == f"LABEL_{k}" for k, name in enumerate(names))
    return None if generic else names  # transformers' wrapper of timm writes them for none

"""Turn pydantic's errors in a recipe into sentences that name the key and the fix."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from coin_hf.errors import shown
from coin_hf.recipe.blocks import Block


def sentences(error: ValidationError, data: Any, model: type[Block]) -> Iterator[str]:
    """Turn pydantic's errors into sentences.

    Args:
        error: Pydantic's errors.
        data: The recipe as plain data.
        model: The model it was validated as.

    Yields:
        A sentence per error.
    """
    findings = error.errors()
    inner = {loc[:n] for loc in (finding["loc"] for finding in findings) for n in range(len(loc))}
    values: dict[str, tuple[list[str], Any]] = {}
    for finding in findings:
        loc, kind = finding["loc"], finding["type"]
        if kind == "extra_forbidden":
            place = _place(loc[:-1], data, last=str(loc[-1]))
            known = list(_block_at(loc[:-1], model).model_fields)
            hint = did_you_mean(str(loc[-1]), known) or f"; valid keys are {', '.join(known)}"
            yield f"unknown key '{place}'{hint}"
        elif kind == "missing":
            yield f"the key '{_place(loc[:-1], data, last=str(loc[-1]))}' is missing"
        elif kind == "value_error":
            yield str(finding["ctx"]["error"])
        elif not (kind == "too_short" and loc in inner):
            # A list with a wrong item is reported as too short as well. A value that fits no
            # member of a union is reported once per member.
            expected, _ = values.setdefault(_place(loc, data), ([], finding["input"]))
            expected.append(_expected(finding))
    for place, (expected, got) in values.items():
        which = f"'{place}'" if place else "the whole"
        yield f"{which}: expected {' or '.join(expected)}, got {shown(got)}"


def _expected(finding: ErrorDetails) -> str:
    """Say what was expected, in the terms of a YAML file."""
    limits = finding.get("ctx", {})
    match finding["type"]:
        case "model_type" | "dict_type":
            return "keys with values"
        case "tuple_type":
            return "a list"
        case "string_type" | "invalid_key":
            return "text (put it in quotes)"
        case "int_type":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "too_short":
            return f"{limits['min_length']} or more entries"
        case "too_long":
            return f"at most {limits['max_length']} entries"
        case "greater_than_equal":
            return f"at least {limits['ge']:g}"
        case "less_than":
            return f"less than {limits['lt']:g}"
        case "greater_than":
            return f"more than {limits['gt']:g}"
        case "less_than_equal":
            return f"at most {limits['le']:g}"
    return finding["msg"].removeprefix("Input should be ")


def _place(loc: tuple[int | str, ...], data: Any, last: str | None = None) -> str:
    """Return an error's path in the user's own keys, without pydantic's union tags."""
    parts: list[str] = []
    node = data
    for part in loc:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            continue
        parts.append(str(part))
    return ".".join(parts if last is None else [*parts, last])


def did_you_mean(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Suggest the closest known word.

    Args:
        word: The word given.
        known: The known words.

    Returns:
        The end of a sentence; empty if no word is close.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def _block_at(loc: tuple[int | str, ...], model: type[Block]) -> type[Block]:
    """Find the block that contains an error."""
    for part in loc:
        field = model.model_fields.get(str(part))
        model = (_block_in(field.annotation) if field else None) or model
    return model


def _block_in(annotation: Any) -> type[Block] | None:
    """Find a block in an annotation such as `dict[str, DatasetBlock]`."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return annotation
    return next(filter(None, map(_block_in, get_args(annotation))), None)

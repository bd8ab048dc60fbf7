"""The form that all records share: typed, closed, read strictly, written as plain JSON."""

import json
from collections.abc import ItemsView, Iterator, KeysView, Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from typing_extensions import Self

from coin_hf.errors import InputError

SHOWN = 5
"""Faults of a file that are listed in a message."""


class Record(BaseModel):
    """Plain data with a type: attributes for code, `record["key"]` for those who think in JSON.

    It is closed (an unknown key is an error), frozen, and holds finite numbers alone. An optional
    key that is absent is not written.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # so that writing one fails, where "null" would hide it
        use_attribute_docstrings=True,
    )

    @classmethod
    def read(cls, text: str | bytes, source: str) -> Self:
        """Read JSON, strictly: no value is converted, no key is unknown.

        Args:
            text: The content of a file.
            source: What messages call it.

        Returns:
            The record.

        Raises:
            InputError: If it is not JSON, or not of this form; up to five faults are listed.
        """
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise InputError(f"{source} {_faults(error)}: download or make it again") from error

    @classmethod
    def of(cls, data: "Record | Mapping[str, Any]") -> Self:
        """Return a record from one, or from plain data.

        Args:
            data: A record, or what its JSON holds.

        Returns:
            The record; the same one where it has this type already.

        Raises:
            InputError: If plain data is not of this form.
        """
        if isinstance(data, cls):
            return data
        plain = data.dump() if isinstance(data, Record) else dict(data)
        return cls.read(json.dumps(plain), f"the {cls.__name__}")

    def dump(self) -> dict[str, Any]:
        """Return it as plain data, as its JSON holds it."""
        return self.model_dump(mode="json")

    def keys(self) -> KeysView[str]:
        """Return the keys that are written, in order."""
        return self.dump().keys()

    def items(self) -> ItemsView[str, Any]:
        """Return keys and plain data, as they are written."""
        return self.dump().items()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the plain data under a key, or a default where it is not written."""
        return self.dump().get(key, default)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a mapping iterates over keys
        """Iterate over the keys that are written."""
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        """Say whether a key is written."""
        return key in self.dump()

    def __getitem__(self, key: str) -> Any:
        """Return the plain data under a key; None for an optional one that is absent."""
        found = self.dump()
        return found.get(key) if key in type(self).model_fields else found[key]

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        found: dict[str, Any] = handler(self)
        return {k: v for k, v in found.items() if v is not None or fields[k].is_required()}


def _faults(error: ValidationError) -> str:
    """Say what is wrong with a file."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return f"is not JSON ({found[0]['msg'].partition(': ')[2]})"
    lacking = [_place(each["loc"]) for each in found if each["type"] == "missing"]
    unknown = [_place(each["loc"]) for each in found if each["type"] == "extra_forbidden"]
    others = [
        f"'{_place(each['loc'])}': {each['msg'][:1].lower()}{each['msg'][1:]}"
        for each in found
        if each["type"] not in ("missing", "extra_forbidden")
    ]
    parts = [f"lacks {_listed(lacking)}"] if lacking else []
    parts += [f"holds the unknown {_listed(unknown)}"] if unknown else []
    parts += [f"is not as expected ({'; '.join(others[:SHOWN])})"] if others else []
    return ", ".join(parts)


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:60] for part in loc) or "the whole"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

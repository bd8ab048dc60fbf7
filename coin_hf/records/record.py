"""The base of all records: typed, closed, read strictly, written as plain JSON."""

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
"""Most errors of a file listed in a message."""


class Record(BaseModel):
    """Typed plain data, read by attribute or, like its JSON, by `record["key"]`.

    It is closed (an unknown key is an error), frozen, and holds only finite numbers. Absent
    optional keys are not written.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # writing one fails; "null" would hide it
        use_attribute_docstrings=True,
    )

    @classmethod
    def read(cls, text: str | bytes, source: str) -> Self:
        """Read JSON strictly: no value is converted, no unknown key accepted.

        Args:
            text: The content of a file.
            source: Its name in messages.

        Returns:
            The record.

        Raises:
            InputError: If it is not JSON, or not of this form; up to five errors are listed.
        """
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise InputError(f"{source} {_faults(error)}: download or make it again") from error

    @classmethod
    def of(cls, data: "Record | Mapping[str, Any]") -> Self:
        """Make a record from a record or plain data.

        Args:
            data: A record, or the content of its JSON.

        Returns:
            The record; the same one if it already has this type.

        Raises:
            InputError: If the plain data does not match this record.
        """
        if isinstance(data, cls):
            return data
        plain = data.dump() if isinstance(data, Record) else dict(data)
        return cls.read(json.dumps(plain), f"the {cls.__name__}")

    def dump(self) -> dict[str, Any]:
        """Return the record as plain data, as in its JSON."""
        return self.model_dump(mode="json")

    def keys(self) -> KeysView[str]:
        """Return the keys that are written, in order."""
        return self.dump().keys()

    def items(self) -> ItemsView[str, Any]:
        """Return keys and plain data, as they are written."""
        return self.dump().items()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the plain data under a key, or a default if it is not written."""
        return self.dump().get(key, default)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a mapping iterates over keys
        """Iterate over the keys that are written."""
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        """Return whether a key is written."""
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
    """Describe the errors of a file."""
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

"""Render the references of recipes and of the command line from the code, as mkdocs builds."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markdown.extensions.toc import slugify
from pydantic import BaseModel
from typer.main import get_command

from coin_hf.cli.app import app
from coin_hf.recipe import Recipe
from coin_hf.serve.settings import ServeSettings

Schema = Mapping[str, Any]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the references where a page asks for them.

    Args:
        markdown: The page.
        **_: What else mkdocs tells.

    Returns:
        The page, its marks replaced.
    """
    for mark, render in RENDERED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, render())
    return markdown


def keys_of(model: type[BaseModel], title: str, level: str) -> str:
    """Render the keys of a YAML file, block by block, from its schema.

    Args:
        model: What the file is read as.
        title: The heading of the outermost block.
        level: The mark of its headings.

    Returns:
        A table for each block, in the order of the keys that they stand at.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = model.model_json_schema()
    places = _places(schema, schema["$defs"])
    keys = _Keys({block: slugify(place, "-") for block, place in places.items()}, schema["$defs"])
    parts = [keys.table(f"{level} {title}", schema)]
    parts += [keys.table(f"{level} {places[name]}", schema["$defs"][name]) for name in places]
    return "\n\n".join(parts)


def _places(block: Schema, blocks: Schema, path: str = "") -> dict[str, str]:
    """Find at which key each block stands first, the outermost first: `compare.coders`."""
    found: dict[str, str] = {}
    for key, said in block["properties"].items():
        for name in _references(said):
            found.setdefault(name, f"{path}{key}")
    for name, place in list(found.items()):
        for inner, where in _places(blocks[name], blocks, f"{place}.").items():
            found.setdefault(inner, where)
    return found


def _references(said: Any) -> Iterator[str]:
    """Name the blocks that a key takes, at any depth."""
    if isinstance(said, Mapping):
        if "$ref" in said:
            yield _block(said)
        for part in said.values():
            yield from _references(part)
    elif isinstance(said, list):
        for part in said:
            yield from _references(part)


def _block(said: Schema) -> str:
    return str(said["$ref"]).rpartition("/")[2]


@dataclass(frozen=True)
class _Keys:
    """Tables of keys, which refer to each other."""

    anchors: Mapping[str, str]
    """Where each block's table is."""
    blocks: Schema

    def table(self, heading: str, block: Schema) -> str:
        """Render the keys of one block."""
        lines = [heading, "", _line(block.get("description", "")), ""]
        lines += ["| key | value | default | what it says |", "| --- | --- | --- | --- |"]
        for key, said in block["properties"].items():
            value = " or ".join(dict.fromkeys(self._kinds(said)))
            text = said.get("description") or self.blocks[_block(said)]["description"]
            default = f"`{_yaml(said.get('default'))}`"
            if key in block.get("required", ()):
                default = "**required**"
            elif "$ref" in said:
                default = "the block's"
            lines.append(f"| `{key}` | {_cell(value)} | {default} | {_cell(_line(text))} |")
        return "\n".join(lines)

    def _kinds(self, said: Schema, several: bool = False) -> Iterator[str]:
        """Name the kinds of value that a key takes, or the items of its list."""
        if "$ref" in said:
            yield f"[{'blocks' if several else 'a block'}](#{self.anchors[_block(said)]})"
        elif "anyOf" in said or "oneOf" in said:
            for option in said.get("anyOf", said.get("oneOf", ())):
                yield from self._kinds(option, several)
        elif "enum" in said or "const" in said:
            yield ", ".join(f"`{each}`" for each in said.get("enum", [said.get("const")]))
        elif said.get("type") == "array":
            items = " or ".join(dict.fromkeys(self._kinds(said.get("items", {}), True)))
            yield f"{'lists' if several else 'a list'} of {items}"
        elif said.get("type") == "object":
            values = " or ".join(self._kinds(said.get("additionalProperties") or {}, True))
            yield f"names, each with {values}".replace("with [blocks]", "with [a block]")
        else:
            name = NAMES[said.get("type", "")][several]
            yield f"{name} {', '.join(_limits(said))}".strip()


NAMES = {
    "integer": ("a whole number", "whole numbers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "string": ("text", "texts"),
    "null": ("`null`", "`null`"),
}
"""What a type of the schema is called, one and several of it."""

LIMITS = {
    "minimum": "≥", "ge": "≥", "exclusiveMinimum": ">", "gt": ">",
    "maximum": "≤", "le": "≤", "exclusiveMaximum": "<", "lt": "<",
}  # fmt: skip


def _limits(said: Schema) -> list[str]:
    """Say between what a number must be, where that is less than what its type holds."""
    return [
        f"{sign} {said[key]:g}" for key, sign in LIMITS.items() if abs(said.get(key, 1e9)) < 1e9
    ]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def commands() -> str:
    """Render every command with its arguments and options, from the parser itself."""
    shown: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return "\n\n".join(_command(name, each) for name, each in shown.items() if not each.hidden)


def _command(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## coin-hf {name}", "", f"    coin-hf {name} {usage}", "", _line(command.help or "")]
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [f"| `{_bar(row[0])}` | {_cell(_line(row[1]))} |" for row in records if row]
    return "\n".join([*lines, "", "| argument or option | what it does |", "| --- | --- |", *rows])


RENDERED: dict[str, Callable[[], str]] = {
    "<!-- recipe keys -->": lambda: keys_of(Recipe, "A recipe", "##"),
    "<!-- serve keys -->": lambda: keys_of(ServeSettings, "All settings", "###"),
    "<!-- commands -->": commands,
}
"""What is rendered, by the mark that it stands at."""


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _bar(text).replace("<", "&lt;")


def _bar(text: str) -> str:
    return text.replace("|", "\\|")

"""Render the references of recipes and of the command line from the code, as mkdocs builds."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
        A table for each block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = model.model_json_schema()
    parts = [_keys(f"{level} {title}", schema)]
    parts += [_keys(f"{level} {name}", block) for name, block in schema["$defs"].items()]
    return "\n\n".join(parts)


def _keys(heading: str, block: Schema) -> str:
    lines = [heading, "", _line(block.get("description", "")), ""]
    lines += ["| key | value | default | |", "| --- | --- | --- | --- |"]
    required = block.get("required", ())
    for key, said in block["properties"].items():
        default = "**required**" if key in required else f"`{_yaml(said.get('default'))}`"
        value = _cell(" or ".join(dict.fromkeys(_kinds(said))))
        lines.append(
            f"| `{key}` | {value} | {default} | {_cell(_line(said.get('description', '')))} |"
        )
    return "\n".join(lines)


def _kinds(said: Schema) -> Iterator[str]:
    """Name the kinds of value that a key takes."""
    if "$ref" in said:
        name = said["$ref"].rpartition("/")[2]
        yield f"[{name}](#{name.lower()})"
    elif "anyOf" in said or "oneOf" in said:
        for option in said.get("anyOf", said.get("oneOf", ())):
            yield from _kinds(option)
    elif "enum" in said or "const" in said:
        yield ", ".join(f"`{each}`" for each in said.get("enum", [said.get("const")]))
    elif said.get("type") == "array":
        yield f"a list of {' or '.join(dict.fromkeys(_kinds(said.get('items', {}))))}"
    elif said.get("type") == "object":
        yield f"keys with {' or '.join(_kinds(said.get('additionalProperties') or {}))}"
    else:
        names = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
        names |= {"string": "text", "null": "`null`"}
        limits = [
            f"{word} {said[limit]:g}"
            for limit, word in (
                ("minimum", "≥"), ("exclusiveMinimum", ">"),
                ("maximum", "≤"), ("exclusiveMaximum", "<"),
            )
            if limit in said and abs(said[limit]) < 1e9
        ]  # fmt: skip
        name = names.get(said.get("type", ""), "any value")
        yield f"{name} {', '.join(limits)}".strip()


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
    return "\n".join([*lines, "", "| option | |", "| --- | --- |", *rows])


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

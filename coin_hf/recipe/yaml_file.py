"""Read a recipe's YAML file as plain data, and apply `key.path=value` overrides."""

from pathlib import Path
from typing import Any

import yaml

from coin_hf.errors import InputError, reason_of
from coin_hf.recipe.text_files import read_text

LARGEST = 1 << 20
"""Bytes of the largest recipe."""
MOST_VALUES = 100_000
"""Values of the largest recipe."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe file.

    Args:
        path: The YAML file.

    Returns:
        Its content.

    Raises:
        InputError: If it cannot be read, is not YAML, repeats a key, or holds no keys.
    """
    way_out = "give the path of a recipe, a YAML file"
    try:
        text = read_text(Path(path), str(path), way_out, largest=LARGEST)
    except FileNotFoundError as error:
        raise InputError(f"there is no recipe {path}: {way_out}") from error
    data = parse_yaml(text, f"{path} is not YAML", f"{path}")
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no recipe: expected keys such as `experts: [...]`")
    return data


def parse_yaml(text: str, otherwise: str, source: str) -> Any:
    """Parse YAML of plain data.

    Args:
        text: The text.
        otherwise: What to say if it is no YAML.
        source: Its name in other messages.

    Returns:
        Its value.

    Raises:
        InputError: If it is not YAML, repeats a key, is nested too deeply, or its aliases repeat
            more than `MOST_VALUES` values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node) > MOST_VALUES:
            raise InputError(
                f"{source} holds more than {MOST_VALUES:,} values, aliases counted as what they "
                "repeat: write less"
            )
        return loader.construct_document(node)
    except _GivenTwice as error:
        raise InputError(f"{source}: {error}") from error
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply: write it flatter") from error
    except InputError:
        raise
    except Exception as error:  # its constructors raise anything on scalars such as 2024-99-99
        raise InputError(f"{otherwise}: {reason_of(error)}") from error


def _values(node: yaml.Node, known: dict[int, int] | None = None) -> int:
    """Count the values below a node, each alias as often as it stands."""
    known = {} if known is None else known
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_VALUES + 1  # what a node within itself comes to
    if isinstance(node, yaml.MappingNode):
        inner = [each for pair in node.value for each in pair]
    else:
        inner = list(node.value) if isinstance(node, yaml.SequenceNode) else []
    known[id(node)] = min(1 + sum(_values(each, known) for each in inner), MOST_VALUES + 1)
    return known[id(node)]


class _GivenTwice(yaml.YAMLError):
    """A key occurs twice in one mapping."""


class _Loader(yaml.SafeLoader):
    """Load plain data; reject repeated keys, of which the parser would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            first = lines.get((key.tag, key.value))
            if first is not None:
                where = f"line {line}" if first == line else f"lines {first} and {line}"
                raise _GivenTwice(f"the key '{key.value}' is given twice, in {where}: keep one")
            lines[key.tag, key.value] = line
        return node


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value` override to nested plain data, in place.

    Args:
        data: A recipe as plain data.
        override: The change; a number in the path selects a list item, and the value is YAML.

    Raises:
        InputError: If it is not of that form, or its path does not exist.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"override '{override}' is not of the form key.path=value")
    short = override if len(override) <= 100 else f"{override[:100]}..."
    value = parse_yaml(text, f"override '{short}' gives no YAML value", f"override '{short}'")
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _item(node, part, override)
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"override '{override}': '{parents[-1]}' holds a value, not keys")


def _item(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise InputError(
                f"override '{override}': '{part}' is not a position in a list of {len(node)}, "
                "counted from 0"
            )
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise InputError(f"override '{override}': '{part}' lies below a value, not below keys")

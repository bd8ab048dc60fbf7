"""Read a recipe's YAML file as plain data, and apply `key.path=value` overrides."""

from pathlib import Path
from typing import Any

import yaml

from coin_hf.errors import InputError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe file.

    Args:
        path: The YAML file.

    Returns:
        Its content.

    Raises:
        InputError: If it cannot be read, is not YAML, repeats a key, or holds no keys.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(
            f"cannot read the recipe {path}: {error.strerror}; give the path of a YAML file"
        ) from error
    except _GivenTwice as error:
        raise InputError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no recipe: expected keys such as `experts: [...]`")
    return data


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
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override '{override}': '{text}' is not a YAML value") from error
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

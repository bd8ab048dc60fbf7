"""Make a result safe to show as Markdown: names are text, never headings, links or HTML."""

import re
from typing import Any

from coin_hf.records.result import ResultRecord

ENTITIES = str.maketrans({c: f"&#{ord(c)};" for c in "&<>|`*[]\\{}~"})
"""Characters that mean something in Markdown or HTML wherever they stand."""


def printable(text: str) -> str:
    """Replace characters that are not printed, such as line ends, by a mark.

    Args:
        text: Any text.

    Returns:
        One line.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def escaped(text: str) -> str:
    """Write text so that Markdown shows it as it is.

    Args:
        text: A name.

    Returns:
        One line, special characters as HTML entities.
    """
    return printable(text).translate(ENTITIES)


def safe(result: ResultRecord) -> ResultRecord:
    """Escape what others wrote in a result: names, locations, revisions, licences.

    Args:
        result: The result.

    Returns:
        The same numbers, with every text in one line and names escaped.
    """
    data = _each(result.dump(), printable)
    names = {name: escaped(name) for name in [e["name"] for e in data["experts"]]}
    for expert in data["experts"]:
        expert |= {"name": escaped(expert["name"]), "dataset": escaped(expert["dataset"])}
        if expert.get("labels"):
            expert["labels"] = [escaped(label) for label in expert["labels"]]
    data["datasets"] = {escaped(key): block for key, block in data["datasets"].items()}
    for erasure in data["erasures"]:
        erasure["missing"] = names.get(erasure["missing"], escaped(erasure["missing"]))
        erasure["beside"] = [names.get(each, escaped(each)) for each in erasure["beside"]]
    for detection in data.get("detection") or []:
        detection["expert"] = names.get(detection["expert"], escaped(detection["expert"]))
    if data.get("damaged"):
        data["damaged"] = {escaped(place): count for place, count in data["damaged"].items()}
    return ResultRecord.of(data)


def plain_id(repo_id: str) -> str:
    """Return a Hub id that may stand in a block of code.

    Args:
        repo_id: The Hub id, or a folder's name in its place.

    Returns:
        The same with a hyphen for every character that no Hub id has.
    """
    return re.sub(r"[^\w./-]", "-", repo_id, flags=re.ASCII)


def _each(data: Any, change: Any) -> Any:
    """Change every string of plain data, keys included."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, dict):
        return {change(key): _each(value, change) for key, value in data.items()}
    return [_each(value, change) for value in data] if isinstance(data, list) else data

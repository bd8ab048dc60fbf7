"""Write and read a coded repository: weights, coin.json, result.json, card and pictures."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError

from coin_hf.errors import InputError
from coin_hf.hub.layout import CARD_FILE, COIN_FILE, DRAWING, FIGURE, RESULT_FILE
from coin_hf.recipe.text_files import read_text
from coin_hf.records.coin import FORMAT, CoinRecord
from coin_hf.records.record import Record
from coin_hf.records.result import ResultRecord
from coin_hf.reports.card import model_card
from coin_hf.reports.drawn_result import result_drawing
from coin_hf.reports.figures import figure
from coin_hf.reports.result import Result
from coin_hf.repository.atomic import check_name, finish, whole_files, whole_folder
from coin_hf.repository.endpoint import endpoint_files
from coin_hf.repository.locks import only_writer
from coin_hf.repository.paths import absolute_in, inside, relative_to


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that is in use, before anything is computed.

    Args:
        folder: The output folder of a coded repository.
        overwrite: Allow it to hold a coded repository, which will be replaced.

    Raises:
        InputError: If it is a file, holds anything (with `overwrite`: anything but a coded
            repository), or cannot be created.
    """
    folder = folder.expanduser()
    check_name(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file: choose a folder")
    parent = next((p for p in folder.absolute().parents if p.exists()), Path("/"))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        problem = "may not be written to" if parent.is_dir() else "is a file"
        raise InputError(
            f"the output folder {folder} cannot be created, as {parent} {problem}: choose another "
            "`output`"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"the output folder {folder} is not empty: choose another `output`, or pass --overwrite"
        )
    if not (folder / COIN_FILE).is_file():
        raise InputError(
            f"the output folder {folder} holds something other than a coded model (it has no "
            f"{COIN_FILE}), so --overwrite leaves it alone: choose another `output`"
        )


def write_repository(
    folder: Path,
    write_weights: Callable[[Path], None],
    coin: CoinRecord,
    result: ResultRecord,
    *,
    overwrite: bool,
    handler: bool = False,
) -> None:
    """Write a coded repository, completely or not at all.

    Args:
        folder: Output folder.
        write_weights: Writes the networks, their configurations and Fishers into the folder given.
        coin: The content of `coin.json`, paths absolute.
        result: The content of `result.json`, paths absolute.
        overwrite: Replace an existing coded repository.
        handler: Also write the files by which Inference Endpoints serve one of its networks.

    Raises:
        InputError: If the folder is in use or cannot be written.
    """
    # Replace a link's target, not the link; recorded paths are relative to the target.
    folder = folder.expanduser().resolve()
    check_output(folder, overwrite=overwrite)
    try:
        with only_writer(folder), whole_folder(folder) as draft:
            write_weights(draft)
            change = relative_to(folder)
            result = result.moved(change)
            (draft / COIN_FILE).write_text(as_json(coin.moved(change)), encoding="utf-8")
            (draft / RESULT_FILE).write_text(as_json(result), encoding="utf-8")
            if result.erasures:
                figure(result, draft / FIGURE)
            (draft / DRAWING).write_text(result_drawing(result), encoding="utf-8")
            card = model_card(result, f"your-name/{folder.name}")
            (draft / CARD_FILE).write_text(str(card), encoding="utf-8")
            for name, content in (endpoint_files(coin) if handler else {}).items():
                (draft / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write the output folder {folder}: {error}; free some space or choose another "
            "`output`"
        ) from error


def save_result(folder: Path, result: ResultRecord | Mapping[str, Any]) -> None:
    """Save new measurements to a coded repository: calibration, result, card and pictures.

    All five files are replaced or none, whenever the process is killed.

    Args:
        folder: The repository.
        result: The result, or the content of its `result.json`; paths absolute.

    Raises:
        InputError: If it cannot be read or written.
    """
    folder = folder.resolve()
    coin, _ = read_records(folder, str(folder))
    change = relative_to(folder)
    found = ResultRecord.of(result).moved(change)
    coin = coin.moved(change).model_copy(update={"calibration": found.calibration})
    try:
        names = (FIGURE, DRAWING, COIN_FILE, RESULT_FILE, CARD_FILE)
        with only_writer(folder), whole_files(folder, names) as drafts:
            figure(found, drafts[FIGURE])
            drafts[DRAWING].write_text(result_drawing(found), encoding="utf-8")
            drafts[COIN_FILE].write_text(as_json(coin), encoding="utf-8")
            drafts[RESULT_FILE].write_text(as_json(found), encoding="utf-8")
            card = model_card(found, f"your-name/{folder.name}")
            drafts[CARD_FILE].write_text(str(card), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}; free some space") from error


def read_records(folder: Path, name: str) -> tuple[CoinRecord, Result]:
    """Read `coin.json` and `result.json`; paths become absolute.

    Args:
        folder: A coded repository on this machine.
        name: Its name in messages.

    Returns:
        Both records.

    Raises:
        InputError: If it is not a coded repository, is damaged, or has a newer format.
    """
    finish(folder)
    texts = [_text(folder, file, name) for file in (COIN_FILE, RESULT_FILE)]
    _check_format(texts[0], name)
    coin = CoinRecord.read(texts[0], f"'{name}': {COIN_FILE}")
    result = Result.read(texts[1], f"'{name}': {RESULT_FILE}")
    coin.recipe  # noqa: B018  # what it records must be a valid recipe
    if [e.name for e in coin.experts] != [e.name for e in result.experts]:
        raise InputError(
            f"'{name}': {COIN_FILE} and {RESULT_FILE} are of different experts: download both again"
        )
    if folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):  # from the Hub
        coin.moved(inside(folder.resolve(), name))
        result.moved(inside(folder.resolve(), name))
    absolute = absolute_in(folder.resolve())
    return coin.moved(absolute), result.moved(absolute)


def read_repository(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read `coin.json` and `result.json` as plain data, checked as by `read_records`.

    Args:
        folder: A coded repository on this machine.
        name: Its name in messages.

    Returns:
        The content of both; paths are absolute.

    Raises:
        InputError: If it is not a coded repository, is damaged, or has a newer format.
    """
    coin, result = read_records(folder, name)
    return coin.dump(), result.dump()


def as_json(record: Record) -> str:
    """Serialise a record as the text of its file.

    Args:
        record: The record.

    Returns:
        JSON, indented by two.
    """
    return json.dumps(record.dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _text(folder: Path, file: str, name: str) -> str:
    try:
        return read_text(folder / file, f"'{name}': {file}", "download it again")
    except FileNotFoundError as error:
        raise InputError(
            f"'{name}' is not a coded model (it has no {file}): make one with "
            "`coin-hf encode RECIPE`"
        ) from error


def _check_format(text: str, name: str) -> None:
    """Reject another format; text that is not JSON is left to its reader."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise InputError(
            f"'{name}': {COIN_FILE} has format {str(found)[:60]}, this coin-hf reads {FORMAT}: "
            "install a newer coin-hf"
        )

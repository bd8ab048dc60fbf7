"""The coded repository on disk and on the Hub: plain weights, coin.json, result.json, card."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from safetensors import SafetensorError

from coin_hf.errors import InputError
from coin_hf.hub.client import sentences
from coin_hf.hub.layout import (
    CARD_FILE,
    COIN_FILE,
    COIN_KEYS,
    FIGURE,
    FORMAT,
    RESULT_FILE,
    RESULT_KEYS,
)
from coin_hf.reports.card import model_card
from coin_hf.reports.tables import figure


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that is in use, before anything is computed.

    Args:
        folder: Where a coded repository shall be written.
        overwrite: Allow it to hold a coded repository, which will be replaced.

    Raises:
        InputError: If it is a file, or holds anything (with `overwrite`: anything else), or cannot
            be made where it shall lie.
    """
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file: choose a folder")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        problem = "may not be written to" if parent.is_dir() else "is a file"
        raise InputError(
            f"the output folder {folder} cannot be made, for {parent} {problem}: choose another "
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
            f"the output folder {folder} holds something else than a coded model (it has no "
            f"{COIN_FILE}), so --overwrite leaves it alone: choose another `output`"
        )


def write_repository(
    folder: Path,
    write_weights: Callable[[Path], None],
    coin: dict[str, Any],
    result: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write a coded repository; it appears whole or not at all.

    Args:
        folder: Where to.
        write_weights: Writes the networks and all that only they know into the folder it is given.
        coin: The content of `coin.json`, local paths absolute.
        result: The content of `result.json`, local paths absolute.
        overwrite: Replace a coded repository that is there.

    Raises:
        InputError: If the folder is in use or cannot be written.
    """
    # Where a link leads is replaced, not the link; and relative paths hold from there.
    folder = folder.expanduser().resolve()
    check_output(folder, overwrite=overwrite)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        write_weights(draft)
        relative = _relative_to(folder)
        _write_json(draft / COIN_FILE, _map_paths(coin, relative))
        result = _map_paths(result, relative)
        _write_json(draft / RESULT_FILE, result)
        if result["erasures"]:
            figure(result, draft / FIGURE)
        card = model_card(result, f"your-name/{folder.name}")
        (draft / CARD_FILE).write_text(str(card), encoding="utf-8")
        _put_in_place(draft, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write the output folder {folder}: {error}; free some space or choose another "
            "`output`"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_result(folder: Path, result: dict[str, Any]) -> None:
    """Put new measurements into a coded repository: calibration, result, card and figure.

    Args:
        folder: The repository.
        result: The content of `result.json`, local paths absolute.

    Raises:
        InputError: If it cannot be written.
    """
    folder = folder.resolve()
    coin = json.loads((folder / COIN_FILE).read_text(encoding="utf-8"))
    relative = _map_paths(result, _relative_to(folder))
    drafts = {name: folder / f".{name}" for name in (COIN_FILE, RESULT_FILE, CARD_FILE, FIGURE)}
    try:
        _write_json(drafts[COIN_FILE], {**coin, "calibration": result["calibration"]})
        _write_json(drafts[RESULT_FILE], relative)
        card = str(model_card(relative, f"your-name/{folder.name}"))
        drafts[CARD_FILE].write_text(card, encoding="utf-8")
        figure(relative, drafts[FIGURE])
        for name, draft in drafts.items():
            draft.replace(folder / name)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}; free some space") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def read_repository(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read `coin.json` and `result.json`; local paths become absolute.

    Args:
        folder: A coded repository on this machine.
        name: What messages call it.

    Returns:
        The content of both.

    Raises:
        InputError: If it is no coded repository, or one of a newer format.
    """
    found = []
    for file in (COIN_FILE, RESULT_FILE):
        try:
            found.append(json.loads((folder / file).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise InputError(
                f"'{name}' is not a coded model (it has no {file}): make one with "
                "`coin-hf encode RECIPE`"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"'{name}': {file} is not JSON ({error}): download or make it again"
            ) from error
    coin, result = found
    format_found = coin.get("format") if isinstance(coin, dict) else None
    if format_found != FORMAT:
        raise InputError(
            f"'{name}': {COIN_FILE} has format {format_found}, this coin-hf reads {FORMAT}: "
            "install a newer coin-hf"
        )
    for file, data, keys in ((COIN_FILE, coin, COIN_KEYS), (RESULT_FILE, result, RESULT_KEYS)):
        lacking = [key for key in keys if key not in data]
        if lacking:
            raise InputError(
                f"'{name}': {file} lacks {', '.join(lacking)}: download or make it again"
            )
    absolute = _absolute_in(folder.resolve())
    return _map_paths(coin, absolute), _map_paths(result, absolute)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add coded model",
    token: str | None = None,
) -> str:
    """Commit a coded repository to the Hub, its card rendered anew for that id.

    Args:
        folder: A coded repository on this machine.
        repo_id: Hub id; created if there is none.
        private: Create it private.
        revision: Branch, created if there is none; by default the main one.
        create_pr: Open a pull request instead.
        commit_message: First line of the commit.
        token: A token that may write; by default the one logged in with.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        InputError: If it is no coded repository, or the Hub cannot be reached or refuses.
    """
    coin, result = read_repository(folder, str(folder))
    # A path on this machine means nothing to others, and is not theirs to know.
    coin, result = _map_paths(coin, _bare), _map_paths(result, _bare)
    contents: dict[str, bytes | Path] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
    contents[COIN_FILE] = _json(coin).encode()
    contents[RESULT_FILE] = _json(result).encode()
    card = model_card(result, repo_id)
    contents[CARD_FILE] = str(card).encode()
    api = HfApi(token=token)
    with sentences(repo_id, revision, "model"):
        _check_card(card, repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def _check_card(card: ModelCard, repo_id: str) -> None:
    """Ask the Hub whether it takes the card, before anything is created there."""
    try:
        card.validate()
    except ValueError as error:
        try:
            faults = "; ".join(fault["message"] for fault in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            faults = " ".join(str(error).split())
        raise InputError(
            f"the Hub refuses the card of '{repo_id}': {faults}; correct what the experts' own "
            "cards declare and encode again"
        ) from error


def local_experts(coin: dict[str, Any]) -> list[str]:
    """Name the experts of a coded repository that are folders, out of reach for others."""
    return [e["name"] for e in coin["experts"] if os.path.isabs(e["model"])]


def _put_in_place(draft: Path, folder: Path) -> None:
    """Rename the finished draft to the folder's name, in one step where nothing was there."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(f"{draft.name}.old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(_json(data), encoding="utf-8")


def _map_paths(data: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change where experts, foundation and datasets lie, in coin.json's or result.json's data."""
    experts = [{**expert, "model": change(expert["model"])} for expert in data["experts"]]
    datasets = {key: {**d, "path": change(d["path"])} for key, d in data["datasets"].items()}
    changed = {**data, "experts": experts, "datasets": datasets}
    if block := data.get("task_arithmetic"):
        changed["task_arithmetic"] = {**block, "foundation": change(block["foundation"])}
    return changed


def _relative_to(folder: Path) -> Callable[[str], str]:
    def change(path: str) -> str:
        if not os.path.isabs(path):
            return path
        relative = Path(os.path.relpath(os.path.realpath(path), folder)).as_posix()
        return relative if relative.startswith(".") else f"./{relative}"

    return change


def _absolute_in(folder: Path) -> Callable[[str], str]:
    def change(path: str) -> str:
        return os.path.normpath(folder / path) if path.startswith(".") else path

    return change


def _bare(path: str) -> str:
    return f"./{Path(path).name}" if os.path.isabs(path) else path

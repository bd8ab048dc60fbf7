"""Push to the Hub: files, or a coded repository with its card rendered for its id."""

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from coin_hf.errors import InputError
from coin_hf.hub.layout import CARD_FILE, COIN_FILE, DRAWING, PUSHED_FILES, RESULT_FILE
from coin_hf.hub.sentences import RepoType, patiently, sentences
from coin_hf.reports.card import model_card
from coin_hf.reports.drawn_result import result_drawing
from coin_hf.repository.endpoint import endpoint_files
from coin_hf.repository.folder import as_json, read_records
from coin_hf.repository.paths import bare

SHOWN = 10
"""Files left out that are named."""


def commit_files(
    repo_id: str,
    files: Mapping[str, bytes | Path],
    *,
    commit_message: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    card: RepoCard | None = None,
    repo_type: RepoType = "model",
) -> str:
    """Commit files to a repository, created if needed.

    Args:
        repo_id: Hub id.
        files: Content, or the file that holds it, by path in the repository.
        commit_message: First line of the commit.
        private: Make a new repository private.
        revision: Branch, created if needed; by default main.
        create_pr: Open a pull request instead.
        token: Token with write access; by default the saved login.
        card: A card that the Hub checks before anything is created there.
        repo_type: Kind of repository; a new Space is one of Gradio.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        InputError: If the Hub cannot be reached or refuses the commit.
    """
    api = HfApi(token=token)
    with sentences(repo_id, revision, repo_type):
        if card is not None:
            _check_card(card, repo_id)
        made = _create(api, repo_id, private, repo_type)
        try:
            if revision is not None and not create_pr:
                patiently(
                    api.create_branch,
                    repo_id,
                    branch=revision,
                    repo_type=repo_type,
                    exist_ok=True,
                )
            commit = patiently(
                api.create_commit,
                repo_id,
                [CommitOperationAdd(name, content) for name, content in files.items()],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                repo_type=repo_type,
            )
        except BaseException:
            if made:  # it holds nothing of anybody's
                with suppress(Exception):
                    api.delete_repo(repo_id, repo_type=repo_type)
            raise
    return str(commit.pr_url or commit.commit_url)


def check_push(
    repo_id: str,
    *,
    create_pr: bool = False,
    token: str | None = None,
    repo_type: RepoType = "model",
) -> None:
    """Check what can be known of a push before anything is computed for it.

    Args:
        repo_id: Hub id.
        create_pr: A pull request is opened, which others may do too.
        token: Token with write access; by default the saved login.
        repo_type: Kind of repository.

    Raises:
        InputError: If the id is not valid, there is no token, the Hub does not accept it, it may
            not write there, or HF_HUB_OFFLINE is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"nothing can be pushed to '{repo_id}' offline: unset HF_HUB_OFFLINE")
    with sentences(repo_id, None, repo_type):
        validate_repo_id(repo_id)
        if token is None and get_token() is None:
            raise InputError(f"no token to push to '{repo_id}' with: log in with `hf auth login`")
        user = patiently(HfApi(token=token).whoami)
        owners = [user["name"], *(each["name"] for each in user.get("orgs", []))]
        role = (user.get("auth") or {}).get("accessToken", {}).get("role")
    owner, _, _ = repo_id.rpartition("/")
    if role == "read" or (owner and owner not in owners and not create_pr):
        raise InputError(
            f"the token of '{user['name']}' may not write to '{repo_id}': log in by `hf auth "
            "login` with one that may, or push to a repository of your own"
        )


def _create(api: HfApi, repo_id: str, private: bool, repo_type: RepoType) -> bool:
    """Create a repository if there is none, and return whether there was none."""
    kind = {"repo_type": repo_type, "space_sdk": "gradio" if repo_type == "space" else None}
    try:
        patiently(api.create_repo, repo_id, private=private, exist_ok=False, **kind)
    except HfHubHTTPError:
        # It is there, or may not be created: the client's own way tells these apart.
        patiently(api.create_repo, repo_id, private=private, exist_ok=True, **kind)
        return False
    return True


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add coded model",
    token: str | None = None,
    handler: bool = False,
) -> str:
    """Push a coded repository to the Hub, with its card rendered for that id.

    Args:
        folder: A coded repository on this machine.
        repo_id: Hub id; created if needed.
        private: Make a new repository private.
        revision: Branch, created if needed; by default main.
        create_pr: Open a pull request instead.
        commit_message: First line of the commit.
        token: Token with write access; by default the saved login.
        handler: Also push the files by which Inference Endpoints serve one of its networks; those
            that the folder holds are pushed anyway.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        InputError: If it is not a coded repository, or the Hub cannot be reached or refuses the
            commit.
    """
    coin, result = read_records(folder, str(folder))
    # Paths on this machine mean nothing to others, and stay private.
    coin, result = coin.moved(bare), result.moved(bare)
    contents: dict[str, bytes | Path] = dict(_files(folder))
    contents[COIN_FILE] = as_json(coin).encode()
    contents[RESULT_FILE] = as_json(result).encode()
    contents[DRAWING] = result_drawing(result).encode()
    card = model_card(result, repo_id)
    contents[CARD_FILE] = str(card).encode()
    contents |= endpoint_files(coin) if handler else {}
    return commit_files(
        repo_id,
        contents,
        commit_message=commit_message,
        private=private,
        revision=revision,
        create_pr=create_pr,
        token=token,
        card=card,
    )


def _files(folder: Path) -> dict[str, Path]:
    """List the files that coin-hf writes, and say which others are left out.

    Raises:
        InputError: If one is a link out of the folder: it would publish what it leads to.
    """
    found, others = {}, []
    # In the Hub's cache the files of a snapshot are links to blobs beside it.
    inside = [folder.resolve(), folder.resolve().parents[1] / "blobs"]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in Path(name).parts):
            continue
        if not any(fnmatchcase(name, pattern) for pattern in PUSHED_FILES):
            others.append(name)
            continue
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise InputError(
                f"{path} is a link to {path.resolve()}, outside the folder, which a push would "
                "publish: put the file itself there, or remove the link"
            )
        found[name] = path
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        warnings.warn(
            f"{', '.join(others[:SHOWN])}{more} in {folder} are no files of a coded model, and are "
            "not pushed",
            stacklevel=3,
        )
    return found


def _check_card(card: RepoCard, repo_id: str) -> None:
    """Let the Hub validate the card, before anything is created there."""
    try:
        patiently(card.validate)
    except ValueError as error:
        try:
            faults = "; ".join(fault["message"] for fault in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            faults = " ".join(str(error).split())
        raise InputError(
            f"the Hub refuses the card of '{repo_id}': {faults}; correct what the experts' own "
            "cards declare and encode again"
        ) from error

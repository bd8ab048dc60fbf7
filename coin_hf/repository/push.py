"""Push to the Hub: files, or a coded repository with its card rendered for its id."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

from coin_hf.errors import InputError
from coin_hf.hub.client import sentences
from coin_hf.hub.layout import CARD_FILE, COIN_FILE, RESULT_FILE
from coin_hf.reports.card import model_card
from coin_hf.repository.folder import as_json, read_records
from coin_hf.repository.paths import bare


def commit_files(
    repo_id: str,
    files: Mapping[str, bytes | Path],
    *,
    commit_message: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    card: ModelCard | None = None,
) -> str:
    """Commit files to a model repository, created if needed.

    Args:
        repo_id: Hub id.
        files: Content, or the file that holds it, by path in the repository.
        commit_message: First line of the commit.
        private: Make a new repository private.
        revision: Branch, created if needed; by default main.
        create_pr: Open a pull request instead.
        token: Token with write access; by default the saved login.
        card: A card that the Hub checks before anything is created there.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        InputError: If the Hub cannot be reached or refuses the commit.
    """
    api = HfApi(token=token)
    with sentences(repo_id, revision, "model"):
        if card is not None:
            _check_card(card, repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


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
    """Push a coded repository to the Hub, with its card rendered for that id.

    Args:
        folder: A coded repository on this machine.
        repo_id: Hub id; created if needed.
        private: Make a new repository private.
        revision: Branch, created if needed; by default main.
        create_pr: Open a pull request instead.
        commit_message: First line of the commit.
        token: Token with write access; by default the saved login.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        InputError: If it is not a coded repository, or the Hub cannot be reached or refuses the
            commit.
    """
    coin, result = read_records(folder, str(folder))
    # Paths on this machine mean nothing to others, and stay private.
    coin, result = coin.moved(bare), result.moved(bare)
    contents: dict[str, bytes | Path] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
    contents[COIN_FILE] = as_json(coin).encode()
    contents[RESULT_FILE] = as_json(result).encode()
    card = model_card(result, repo_id)
    contents[CARD_FILE] = str(card).encode()
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


def _check_card(card: ModelCard, repo_id: str) -> None:
    """Let the Hub validate the card, before anything is created there."""
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

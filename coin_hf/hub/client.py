"""Pin and fetch repositories from the Hub or a folder."""

import re
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from coin_hf.errors import InputError, shown
from coin_hf.hub.hashes import check_downloads, folder_revision
from coin_hf.hub.sentences import RepoType, not_cached, patiently, sentences

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit SHA: it never moves, so no server is needed to resolve it."""
REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*(/[A-Za-z0-9_][A-Za-z0-9_.+@-]*)*")
"""A branch or tag: a name that is no path out of the cache."""


def local_folder(path: str) -> Path | None:
    """Return the folder that `path` names, or None if it is a Hub id.

    Args:
        path: A folder, or a Hub id such as `timm/resnet50.a1_in1k`.

    Returns:
        The existing folder, or None.

    Raises:
        InputError: If `path` can only be a folder and there is none, or it is a file.
    """
    try:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder
        is_file = folder.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null, no such user
        raise InputError(
            f"there is no folder {shown(path)}: give an existing folder or a Hub id"
        ) from error
    if is_file:
        raise InputError(f"{path} is a file: give the folder that holds it")
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
        raise InputError(f"there is no folder {shown(path)}: give an existing folder or a Hub id")
    return None


def pin(path: str, revision: str | None, repo_type: RepoType = "model") -> str:
    """Return the exact revision of a repository or folder.

    Under HF_HUB_OFFLINE a branch or tag resolves as it did when last pinned online.

    Args:
        path: A folder or a Hub id.
        revision: Branch, tag, commit, or `sha256:...` of a folder; None for the newest.
        repo_type: Kind of repository.

    Returns:
        The commit's 40 hexadecimal digits, or `sha256:...` of the folder's content.

    Raises:
        InputError: If it cannot be found, or a folder no longer has the requested revision.
    """
    folder = local_folder(path)
    if folder is not None:
        found = folder_revision(folder)
        if revision not in (None, found):
            raise InputError(
                f"the folder {path} has changed: expected revision {revision}, found {found}; "
                "restore its files, or leave out `revision` to take it as it is"
            )
        return found
    what = f"{repo_type} '{path}'"
    with sentences(path, revision, repo_type):
        ref = _cached_ref(path, revision or constants.DEFAULT_REVISION, repo_type)
        if constants.HF_HUB_OFFLINE:
            if revision is not None and COMMIT.fullmatch(revision):
                return revision
            if not ref.is_file():
                raise InputError(not_cached(what, revision))
            sha = ref.read_text(encoding="utf-8").strip()
            way_out = f"remove {ref}, and pin it once with a network"
        else:
            info = patiently(HfApi().repo_info, path, revision=revision, repo_type=repo_type)
            sha, way_out = str(info.sha), "check whether a proxy stands before the Hub"
    if not COMMIT.fullmatch(sha):
        raise InputError(f"the commit of the {what} is given as {shown(sha)}: {way_out}")
    if not constants.HF_HUB_OFFLINE:
        _remember(ref, sha)
    return sha


def _cached_ref(path: str, revision: str, repo_type: RepoType) -> Path:
    """Return the file in the Hub's cache that stores the commit of a branch or tag."""
    validate_repo_id(path)
    if not REF.fullmatch(revision) or ".." in revision:
        raise InputError(
            f"{shown(revision)} is no revision of the {repo_type} '{path}': give a branch, tag or "
            "commit"
        )
    repo = repo_folder_name(repo_id=path, repo_type=repo_type)
    return Path(constants.HF_HUB_CACHE, repo, "refs", revision)


def _remember(ref: Path, sha: str) -> None:
    """Store a commit for offline use.

    Files are fetched by commit, for which the client itself stores no branch.
    """
    if ref.name == sha:
        return
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(sha, encoding="utf-8")
    except OSError:
        pass  # a read-only cache still serves online use


def fetch(path: str, revision: str | None, allow_patterns: list[str]) -> Path:
    """Return a folder with the files of a model repository.

    Args:
        path: A folder or a Hub id.
        revision: The pinned revision, from `pin`.
        allow_patterns: Which files to download; a folder is returned as it is.

    Returns:
        The folder; what was downloaded holds what the Hub says it does.

    Raises:
        InputError: If it cannot be found or downloaded, or a download is damaged.
    """
    folder = local_folder(path)
    if folder is not None:
        return folder
    with sentences(path, revision, "model"):
        snapshot = Path(
            patiently(snapshot_download, path, revision=revision, allow_patterns=allow_patterns)
        )
        check_downloads(snapshot, f"model '{path}'", allow_patterns)
        return snapshot


def fetch_file(path: str, revision: str | None, name: str) -> Path | None:
    """Return one small file of a model repository.

    Args:
        path: A folder or a Hub id.
        revision: The pinned revision, from `pin`.
        name: The file's name.

    Returns:
        The file; None if there is none or, without a network, none is in the cache.

    Raises:
        InputError: If the repository cannot be found or read.
    """
    folder = local_folder(path)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    with sentences(path, revision, "model"):
        try:
            return Path(patiently(hf_hub_download, path, name, revision=revision))
        except EntryNotFoundError:
            return None


def locate(path: str, revision: str | None, allow_patterns: list[str]) -> Path:
    """Return a folder with the files of a model repository at any revision.

    Args:
        path: A folder or a Hub id.
        revision: Branch, tag, commit, or `sha256:...` of a folder; None for the newest, or for a
            folder as it is, without hashing it.
        allow_patterns: Which files to download; a folder is returned as it is.

    Returns:
        The folder.

    Raises:
        InputError: If it cannot be found or downloaded, or a folder has another revision.
    """
    folder = local_folder(path)
    if folder is not None and revision is None:
        return folder
    return fetch(path, pin(path, revision), allow_patterns)

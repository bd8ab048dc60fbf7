"""Pin and fetch repositories from the Hub or a folder; turn the Hub's errors into sentences."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from coin_hf.errors import InputError, shown

RepoType = Literal["model", "dataset"]

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit SHA: it never moves, so no server is needed to resolve it."""


def local_folder(path: str) -> Path | None:
    """Return the folder that `path` names, or None if it is a Hub id.

    Args:
        path: A folder, or a Hub id such as `timm/resnet50.a1_in1k`.

    Returns:
        The existing folder, or None.

    Raises:
        InputError: If `path` can only be a folder and there is none, or it is a file.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InputError(f"{path} is a file: give the folder that holds it")
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
        raise InputError(f"there is no folder {shown(path)}: give an existing folder or a Hub id")
    return None


def folder_revision(folder: Path) -> str:
    """Return `sha256:` and a hash over the names and contents of all files of a folder.

    Args:
        folder: The folder.

    Returns:
        The revision; hidden files (locks, a download's bookkeeping) are ignored.
    """
    digest = hashlib.sha256()
    for file in sorted(_files(folder)):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        seen = file.stat()
        known = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        digest.update(f"{name}\0{_file_hash(file, known)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _files(folder: Path) -> Iterator[Path]:
    """List all files below a folder, behind symbolic links too: what is read is what is hashed."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to where we were
            folders.clear()
            continue
        seen.add(real)
        yield from (path for name in files if (path := Path(root, name)).is_file())


@lru_cache(maxsize=1 << 14)
def _file_hash(file: Path, known: tuple[int, ...]) -> str:
    """Hash a file, cached until its metadata changes, as it does on every write."""
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
    return content.hexdigest()


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
    with sentences(path, revision, repo_type):
        ref = _cached_ref(path, revision or constants.DEFAULT_REVISION, repo_type)
        if constants.HF_HUB_OFFLINE:
            if revision is not None and COMMIT.fullmatch(revision):
                return revision
            if not ref.is_file():
                raise InputError(_not_cached(f"{repo_type} '{path}'", revision))
            return ref.read_text(encoding="utf-8").strip()
        sha = HfApi().repo_info(path, revision=revision, repo_type=repo_type).sha
    assert sha is not None  # the server always sends it for a single repository
    _remember(ref, sha)
    return sha


def _cached_ref(path: str, revision: str, repo_type: RepoType) -> Path:
    """Return the file in the Hub's cache that stores the commit of a branch or tag."""
    validate_repo_id(path)
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
        The folder.

    Raises:
        InputError: If it cannot be found or downloaded.
    """
    folder = local_folder(path)
    if folder is not None:
        return folder
    with sentences(path, revision, "model"):
        return Path(snapshot_download(path, revision=revision, allow_patterns=allow_patterns))


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


@contextmanager
def sentences(path: str, revision: str | None, repo_type: RepoType) -> Iterator[None]:
    """Turn an error of the Hub's client into one sentence that says what to do.

    Args:
        path: The Hub id being read or written.
        revision: The requested revision.
        repo_type: Kind of repository.

    Yields:
        Nothing.

    Raises:
        InputError: In place of the client's own errors.
    """
    what = f"{repo_type} '{path}'"
    try:
        yield
    except hub_errors.HFValidationError as error:
        raise InputError(
            f"'{path}' is neither an existing folder nor a Hub id of the form name/repository"
        ) from error
    except hub_errors.GatedRepoError as error:
        raise InputError(
            f"the {what} is gated: accept its terms on its Hub page and log in with `hf auth login`"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise InputError(
            f"the {what} has no revision '{revision}': give an existing branch, tag or commit"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no {what} on the Hub, nor a folder of that name: check the spelling, or "
            "log in with `hf auth login` if it is private"
        ) from error
    except (hub_errors.OfflineModeIsEnabled, hub_errors.LocalEntryNotFoundError) as error:
        raise InputError(_not_cached(what, revision)) from error
    except hub_errors.HfHubHTTPError as error:
        raise InputError(_refused(what, error)) from error
    except hub_errors.LocalTokenNotFoundError as error:
        raise InputError(f"no token for the {what}: log in with `hf auth login`") from error
    except Exception as error:
        # The client wraps any failure in the upload of a large file.
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        if isinstance(cause, hub_errors.HfHubHTTPError):
            raise InputError(_refused(what, cause)) from error
        # The client passes on connection errors of its HTTP library, which has changed between
        # releases; only the names of the errors stayed.
        cause = cause or error
        names = {cls.__name__ for cls in type(cause).__mro__}
        if names & {"TransportError", "ConnectionError", "TimeoutException"}:
            raise InputError(
                f"cannot reach the Hub for the {what} ({type(cause).__name__}): check the network, "
                "or set HF_HUB_OFFLINE=1 to work from the local cache"
            ) from error
        raise


def _not_cached(what: str, revision: str | None) -> str:
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub is out of reach"
    at = f" at revision '{revision}'" if revision else ""
    return (
        f"the {what}{at} is not in the local cache and {reason}: "
        "download it once with a network, or give a folder"
    )


def _refused(what: str, error: hub_errors.HfHubHTTPError) -> str:
    status = error.response.status_code
    details = "; ".join((error.server_message or "").split("\n"))
    if status in (401, 403):
        return (
            f"the Hub refused access to the {what} ({status}): log in with `hf auth login`, "
            f"with a token that may write if you push ({details or 'no details'})"
        )
    return (
        f"the Hub answered {status} for the {what}: "
        f"{details or error.response.reason_phrase}; try again later"
    )

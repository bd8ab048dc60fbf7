"""Turn the errors of the Hub's client into sentences, and try again where the Hub is busy."""

import errno
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from coin_hf.errors import InputError, reason_of

Result = TypeVar("Result")
RepoType = Literal["model", "dataset", "space"]

BUSY = {429, 502, 503, 504}
"""Answers of a Hub that is busy for a moment."""
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt, where the Hub names none."""
LONGEST_WAIT = 30.0
"""Longest wait, in seconds, that the Hub may ask for."""
MEANINGS = {
    413: "what is sent is too large for it; send smaller files",
    451: "it is withheld for legal reasons; choose another repository",
    500: "it failed itself; try again later, or see https://status.huggingface.co",
}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Error codes of a place that cannot be written, which say enough themselves."""


@contextmanager
def sentences(
    path: str, revision: str | None, repo_type: RepoType, *, others: bool = True
) -> Iterator[None]:
    """Turn an error of the Hub's client into one sentence that says what to do.

    Args:
        path: The Hub id being read or written.
        revision: The requested revision.
        repo_type: Kind of repository.
        others: Take any other error for an answer that is not the Hub's; False where the block does
            more than talk to it.

    Yields:
        Nothing.

    Raises:
        InputError: In place of the client's own errors; a disk that cannot be written to keeps its
            own.
    """
    what = f"{repo_type} '{path}'"
    try:
        yield
    except InputError:
        raise
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
        raise InputError(_cause_of_absence(error, what, revision)) from error
    except hub_errors.HfHubHTTPError as error:
        raise InputError(_refused(what, error)) from error
    except hub_errors.LocalTokenNotFoundError as error:
        raise InputError(f"no token for the {what}: log in with `hf auth login`") from error
    except Exception as error:
        _told_by_its_cause(error, what)
        if not others or (isinstance(error, OSError) and error.errno in DISK):
            raise
        raise InputError(
            f"the Hub's answer for the {what} is not one of the Hub's ({reason_of(error)}): check "
            "whether a proxy or a login page stands before it, and try again"
        ) from error


def patiently(call: Callable[..., Result], *args: Any, **settings: Any) -> Result:
    """Call the Hub's client, again where the Hub is busy.

    Args:
        call: A function of the client.
        args: Its arguments.
        settings: Its settings.

    Returns:
        What it returns; its last error passes through.
    """
    for wait in WAITS:
        try:
            return call(*args, **settings)
        except Exception as error:
            response = getattr(_http_error(error), "response", None)
            status = getattr(response, "status_code", None)
            if response is None or status not in BUSY:
                raise
            asked = response.headers.get("Retry-After", "")
            wait = float(asked) if asked.isdecimal() else wait
            if wait > LONGEST_WAIT:
                raise
            warnings.warn(f"the Hub is busy ({status}): trying again in {wait:g} s", stacklevel=3)
            time.sleep(wait)
    return call(*args, **settings)


def not_cached(what: str, revision: str | None) -> str:
    """Say that something is not in the local cache, and cannot be downloaded now.

    Args:
        what: What is missing.
        revision: Its revision.

    Returns:
        A sentence.
    """
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub is out of reach"
    at = f" at revision '{revision}'" if revision else ""
    return (
        f"the {what}{at} is not in the local cache and {reason}: "
        "download it once with a network, or give a folder"
    )


def _http_error(error: BaseException) -> BaseException:
    """Return the HTTP error behind an error: the client wraps some in others."""
    cause = error.__cause__
    return cause if isinstance(cause, hub_errors.HfHubHTTPError) else error


def _cause_of_absence(error: Exception, what: str, revision: str | None) -> str:
    """Say why a file could not be had: what the Hub answered, if it did."""
    cause = _http_error(error)
    if isinstance(cause, hub_errors.HfHubHTTPError):
        return _refused(what, cause)
    return not_cached(what, revision)


def _told_by_its_cause(error: Exception, what: str) -> None:
    """Raise a sentence for an HTTP or connection error behind another error."""
    # The client wraps any failure in the upload of a large file.
    cause = (error.__cause__ if isinstance(error, RuntimeError) else None) or error
    if isinstance(cause, hub_errors.HfHubHTTPError):
        raise InputError(_refused(what, cause)) from error
    # The client passes on connection errors of its HTTP library, which has changed between
    # releases; only the names of the errors stayed.
    names = {cls.__name__ for cls in type(cause).__mro__}
    if "TooManyRedirects" in names:
        raise InputError(
            f"the Hub's address for the {what} leads back to itself: check the network's proxy, "
            "and HF_ENDPOINT"
        ) from error
    if names & {"TransportError", "ConnectionError", "TimeoutException"}:
        raise InputError(
            f"cannot reach the Hub for the {what} ({type(cause).__name__}): check the network, "
            "or set HF_HUB_OFFLINE=1 to work from the local cache"
        ) from error


def _refused(what: str, error: hub_errors.HfHubHTTPError) -> str:
    status = error.response.status_code
    details = "; ".join((error.server_message or "").split("\n"))
    if status in (401, 403):
        return (
            f"the Hub refused access to the {what} ({status}): log in with `hf auth login`, "
            f"with a token that may write if you push ({details or 'no details'})"
        )
    said = details or getattr(error.response, "reason_phrase", "") or "no details"
    return f"the Hub answered {status} for the {what} ({said}): " + MEANINGS.get(
        status, "try again later"
    )

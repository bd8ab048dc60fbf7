"""The error for wrong input, with a message that says how to fix it."""

import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, 100, 100, 40


class InputError(ValueError):
    """A mistake in the user's input: recipe, expert, dataset or output folder.

    The message is one sentence or a short list: what was expected, what was given, how to fix it.
    The command line prints it without a traceback and exits with code 2; programs can catch it as
    a `ValueError`.
    """


@contextmanager
def boundary(what: str, way_out: str) -> Iterator[None]:
    """Turn whatever another library raises on a user's files into one sentence.

    Lists of exception types are never complete: decoders and builders raise anything on damaged
    or hostile files. So this wraps the library's own call and nothing else: an error of our own
    code must not pass for a user's mistake.

    Args:
        what: What is wrong, such as "the image in row 3 of dataset 'd' is damaged".
        way_out: What to do about it.

    Yields:
        Nothing.

    Raises:
        InputError: `what (reason): way_out`, in place of any exception that is not one already.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({reason_of(error)}): {way_out}") from error


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one short line.

    Args:
        error: The exception.

    Returns:
        At most 300 characters; the exception's type where it says nothing.
    """
    said = re.sub(r" <[^<>]* object at 0x[0-9a-f]+>", "", " ".join(str(error).split()))
    return said[:300] or type(error).__name__


def shown(value: Any) -> str:
    """Show a value of a user's file in a message, whatever its size.

    Args:
        value: Plain data.

    Returns:
        Its `repr`, long strings and lists cut; of bounded work too, as where one list holds
        another many times.
    """
    try:
        return _BRIEF.repr(value)
    except ValueError:  # a number of more digits than Python writes out
        return "a number of thousands of digits"

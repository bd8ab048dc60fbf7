"""Say which extra brings what is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from coin_hf.errors import InputError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failing import into a sentence.

    Args:
        extra: The extra of coin-hf that the command needs.

    Yields:
        Nothing.

    Raises:
        InputError: If something cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"this needs {error.name}, which is not installed: pip install 'coin-hf[{extra}]'"
        ) from error

"""Parse options that take several numbers: `--betas 0.7 0.3`."""

from collections.abc import Sequence

from coin_hf.errors import InputError

NUMBERS = ("--betas", "--missing")


def gathered(arguments: Sequence[str]) -> list[str]:
    """Join the numbers after `--betas` or `--missing` into one argument each.

    Args:
        arguments: The command line.

    Returns:
        The command line with `--betas 0.7,0.3` for `--betas 0.7 0.3`.
    """
    found: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        found.append(word)
        if word in NUMBERS:
            numbers = []
            while rest and _is_number(rest[0]):
                numbers.append(rest.pop(0))
            if numbers:
                found.append(",".join(numbers))
    return found


def rows(betas: Sequence[str]) -> list[float] | list[list[float]]:
    """Read coding weights.

    Args:
        betas: The values of `--betas`, one for each coded model.

    Returns:
        Shape (N,) for one, else (M, N).

    Raises:
        InputError: If a value is not a number.
    """
    read = [numbers(row) for row in betas]
    return read[0] if len(read) == 1 else read


def numbers(text: str) -> list[float]:
    """Read numbers.

    Args:
        text: Numbers separated by spaces or commas.

    Returns:
        The numbers.

    Raises:
        InputError: If a value is not a number.
    """
    words = text.replace(",", " ").split()
    if not words or not all(map(_is_number, words)):
        raise InputError(f"expected numbers such as `0.7 0.3`, got '{text}'")
    return [float(word) for word in words]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True

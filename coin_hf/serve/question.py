"""One query's input: as it came, and as the networks take it."""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import PIL.Image

from coin_hf.errors import InputError, boundary
from coin_hf.serve.settings import LimitBlock

Task = Literal["image-classification", "text-classification"]


class TooLarge(InputError):
    """An input above a limit."""


@dataclass(frozen=True, eq=False)
class Question:
    """The input of a query."""

    raw: bytes | str
    """An image's file, or a text."""
    prepared: Any
    """The networks' input without batch axis; None where other servers preprocess it."""


def read_image(data: bytes, limits: LimitBlock) -> PIL.Image.Image:
    """Open an image file of bounded size.

    Args:
        data: The file.
        limits: The most pixels.

    Returns:
        The image, decoded.

    Raises:
        InputError: If it is no image, or is damaged.
        TooLarge: If it has too many pixels.
    """
    with boundary("the request's body is no image that can be read", "send a JPEG or PNG file"):
        image = PIL.Image.open(io.BytesIO(data))
        width, height = image.size  # from the header: nothing is decoded yet
    if width * height > limits.pixels:
        raise TooLarge(
            f"the image has {width} x {height} pixels, above the limit of {limits.pixels}: send a "
            "smaller one"
        )
    with boundary("the image is damaged or cut short", "send the whole file"):
        image.load()
    return image


def from_base64(text: str) -> bytes:
    """Decode an image that came within JSON.

    Args:
        text: Base64; addresses are never fetched.

    Returns:
        The file.

    Raises:
        InputError: If it is no base64.
    """
    if text.startswith(("http://", "https://", "file:", "data:")):
        raise InputError("`inputs` is an address, which is not fetched: send the image itself")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("`inputs` is no base64: send the image's bytes in base64") from error


def question(
    raw: bytes | str, prepare: Callable[[Any], Any] | None, task: Task, limits: LimitBlock
) -> Question:
    """Make a query's input of a request.

    Args:
        raw: An image's file, or a text.
        prepare: Image or text -> the networks' input; None where other servers do it.
        task: What the networks classify.
        limits: The most pixels of an image.

    Returns:
        The input.

    Raises:
        InputError: If it cannot be read.
    """
    if task == "image-classification":
        if not isinstance(raw, bytes):
            raise InputError("this model classifies images: send an image's bytes")
        image = read_image(raw, limits)
        return Question(raw, None if prepare is None else prepare(image))
    if not isinstance(raw, str):
        raise InputError("this model classifies texts: send `inputs` as a string")
    return Question(raw, None if prepare is None else prepare(raw))

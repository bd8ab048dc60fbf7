"""Read a request to the HTTP interface."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from coin_hf.serve.answers import FUNCTIONS, Function
from coin_hf.serve.query import Decoded
from coin_hf.serve.question import Task, from_base64
from coin_hf.serve.settings import LimitBlock

DRAINED = 4
"""A body is read up to this many times its limit before its sender is cut off."""
DECODED: tuple[Decoded, ...] = ("allow", "refuse", "only")


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    raw: bytes | str
    top_k: int | None
    function: Function
    decoded: Decoded


async def read(request: Request, task: Task, limits: LimitBlock) -> Asked:
    """Read a request: an image's bytes, or JSON of `inputs` and `parameters`.

    Args:
        request: The request.
        task: What the networks classify.
        limits: The most bytes and seconds that its body may take.

    Returns:
        What it asks for.

    Raises:
        HTTPException: If it is of another form, too large or too slow.
    """
    try:
        body = await asyncio.wait_for(_body(request, limits.body), limits.seconds)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not come in {limits.seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the sender left") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    image = task == "image-classification"
    if kind != "application/json" and image:
        return Asked(body, None, "softmax", "allow")
    if kind != "application/json":
        raise HTTPException(400, 'send JSON: {"inputs": "a text"}')
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    if not isinstance(data, dict) or not isinstance(data.get("inputs"), str):
        raise HTTPException(422, 'send {"inputs": "..."}, one string')
    raw = from_base64(data["inputs"]) if image else data["inputs"]
    parameters = data.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise HTTPException(422, "`parameters` must be an object")
    known = ("top_k", "function_to_apply", "decoded")
    if unknown := sorted(parameters.keys() - set(known)):
        raise HTTPException(422, f"unknown parameter {unknown[0]!a}: known are {', '.join(known)}")
    top_k = parameters.get("top_k")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise HTTPException(422, "`top_k` must be a whole number from 1 on")
    return Asked(
        raw,
        top_k,
        _one_of(parameters, "function_to_apply", FUNCTIONS),
        _one_of(parameters, "decoded", DECODED),
    )


def _one_of(parameters: dict[str, Any], key: str, known: Sequence[Any]) -> Any:
    """Return one of some words; the first where none is given."""
    given = parameters.get(key)
    if given is None:
        return known[0]
    if given not in known:
        raise HTTPException(422, f"`{key}` must be one of {', '.join(known)}")
    return given


async def _body(request: Request, most: int) -> bytes:
    """Read the body; what is above the limit is read and dropped, so that its sender listens."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > DRAINED * most:
            break
    if not size:
        raise HTTPException(400, "the body is empty")
    if size > most:
        raise HTTPException(413, f"the body has more than {most} bytes")
    return b"".join(parts)

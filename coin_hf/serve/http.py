"""The HTTP interface: the Hub's classification API for each expert, and what operators read."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coin_hf.errors import InputError
from coin_hf.serve.answers import elements
from coin_hf.serve.events import How, Reply
from coin_hf.serve.metrics import Metrics
from coin_hf.serve.network import Late, Overloaded, Unanswered
from coin_hf.serve.parsing import Asked, read
from coin_hf.serve.question import Question, TooLarge, question
from coin_hf.serve.service import Service
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.target import Target

RETRY_AFTER = "1"
"""Seconds that a refused client is asked to wait."""
QUERIES = ("/models", "/ensemble")
"""The paths whose responses are counted."""
FARTHEST: tuple[How, ...] = ("alone", "decoded", "direct")
"""Of several answers, the header names the one that is farthest from the expert's own."""


def make_app(target: Target, settings: ServeSettings) -> Starlette:
    """Make the application.

    Args:
        target: The coded repository.
        settings: How it is served.

    Returns:
        An ASGI application; its networks start and end with it.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.service = Service(target, settings)
        try:
            yield
        finally:
            await app.state.service.close()

    return Starlette(
        routes=[
            Route("/models/{expert:path}", _ask, methods=["POST"]),
            Route("/ensemble", _ask_all, methods=["POST"]),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/info", _info),
            Route("/metrics", _metrics),
        ],
        exception_handlers={
            HTTPException: _http_error,
            InputError: _input_error,
            Unanswered: _unanswered,
            Exception: _failure,
        },
        lifespan=lifespan,
        middleware=[Middleware(_Counted)],
    )


class _Counted:
    """Counts every response to a query by its status, whoever wrote it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = "/" + str(scope.get("path", "")).strip("/").partition("/")[0]
        if scope["type"] != "http" or place not in QUERIES:
            return await self._app(scope, receive, send)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics: Metrics = scope["app"].state.service.metrics
                metrics.responses.labels(place, str(message["status"])).inc()
            await send(message)

        return await self._app(scope, receive, counting)


async def _ask(request: Request) -> Response:
    """Answer for one expert."""
    service: Service = request.app.state.service
    name = request.path_params["expert"]
    try:
        expert = service.expert(name)
    except KeyError:
        raise HTTPException(
            404, f"there is no expert '{name}': they are named {', '.join(service.names)}"
        ) from None
    began = time.perf_counter()
    async with _room(service):
        asked = await read(request, service.target.task, service.settings.limits)
        x = await _prepared(asked, service)
        reply = await service.router.ask(expert, x, asked.decoded)
    answer: Any = _elements(reply, service.target.labels[expert], asked)
    if service.target.task == "text-classification":
        answer = [answer]  # as the Hub's API has it
    headers = _headers([reply], began)
    if (nda := service.ndas.get((reply.expert, reply.how))) is not None:
        headers["x-coin-nda"] = f"{nda:.2f}"
    return JSONResponse(answer, headers=headers)


async def _ask_all(request: Request) -> Response:
    """Answer for every expert."""
    service: Service = request.app.state.service
    began = time.perf_counter()
    async with _room(service):
        asked = await read(request, service.target.task, service.settings.limits)
        if asked.decoded != "allow":
            raise HTTPException(422, "`decoded` is for one expert: all are asked here")
        x = await _prepared(asked, service)
        replies = await service.router.ask_all(x)
    found = [
        {
            "expert": reply.expert,
            "decoded": reply.how != "direct",
            **({"alone": True} if reply.how == "alone" else {}),
            "answer": _elements(reply, labels, asked),
        }
        for reply, labels in zip(replies, service.target.labels, strict=True)
    ]
    return JSONResponse(found, headers=_headers(replies, began))


async def _health(request: Request) -> Response:
    """Say that the process answers."""
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Say whether every expert can be answered for."""
    ready = request.app.state.service.ready
    return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


async def _info(request: Request) -> Response:
    """Describe what is served."""
    return JSONResponse(request.app.state.service.info())


async def _metrics(request: Request) -> Response:
    """Return the metrics."""
    text = await request.app.state.service.measured()
    return Response(text, media_type="text/plain; version=0.0.4")


@asynccontextmanager
async def _room(service: Service) -> AsyncIterator[None]:
    """Refuse a request where too many are in work."""
    if service.in_work >= service.settings.limits.waiting:
        raise Overloaded(f"{service.in_work} requests are in work: try again")
    service.in_work += 1
    try:
        yield
    finally:
        service.in_work -= 1


async def _prepared(asked: Asked, service: Service) -> Question:
    """Decode and preprocess the input, in a thread."""
    target, limits = service.target, service.settings.limits
    work: Callable[[], Question] = lambda: question(  # noqa: E731
        asked.raw, target.prepare, target.task, limits
    )
    return await asyncio.get_running_loop().run_in_executor(service.preparing, work)


def _elements(reply: Reply, labels: Sequence[str], asked: Asked) -> list[dict[str, Any]]:
    return elements(
        reply.logits,
        labels,
        top_k=asked.top_k,
        function=asked.function,
        how=reply.how,
    )


def _headers(replies: Sequence[Reply], began: float) -> dict[str, str]:
    """Say how an answer came about."""

    def names(each: Sequence[str]) -> str:
        return ", ".join(quote(name, safe=" ") for name in dict.fromkeys(each))

    every = {reply.how for reply in replies}
    farthest = next(how for how in FARTHEST if how in every)
    return {
        "x-coin-answer": farthest,
        "x-coin-hedged": str(any(reply.hedged for reply in replies)).lower(),
        "x-coin-missing": names([name for reply in replies for name in reply.missing]),
        "x-coin-used": names([name for reply in replies for name in reply.used]),
        "x-compute-time": f"{time.perf_counter() - began:.6f}",
    }


def _said(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # as it is registered
    return JSONResponse(
        {"error": error.detail}, status_code=error.status_code, headers=error.headers
    )


def _input_error(request: Request, error: Exception) -> Response:
    return _said(413 if isinstance(error, TooLarge) else 400, str(error))


def _unanswered(request: Request, error: Exception) -> Response:
    if isinstance(error, Overloaded):
        return JSONResponse(
            {"error": str(error)}, status_code=429, headers={"retry-after": RETRY_AFTER}
        )
    return _said(504 if isinstance(error, Late) else 503, str(error))


def _failure(request: Request, error: Exception) -> Response:
    return _said(500, f"internal error: {type(error).__name__}")

"""A server around a repository's handler.py, as Inference Endpoints run it: without coin-hf."""

import importlib.util
import io
import os
import sys
from pathlib import Path

import uvicorn
from PIL.Image import open as open_image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def load(folder: str):  # type: ignore[no-untyped-def]
    """Import handler.py from its folder, where coin-hf is not to be had, and make its handler."""
    sys.modules["coin_hf"] = None  # type: ignore[assignment]  # importing it fails
    spec = importlib.util.spec_from_file_location("handler", Path(folder, "handler.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(folder)


def serve(folder: str) -> None:
    """Serve until the process is ended."""
    handler = load(folder)

    async def answer(request: Request) -> JSONResponse:
        token = os.environ.get("ENDPOINT_TOKEN")
        if token and request.headers.get("authorization") != f"Bearer {token}":
            return JSONResponse({"error": "unauthorized"}, status_code=401)
        if request.headers.get("content-type", "").startswith("image/"):
            data = {"inputs": open_image(io.BytesIO(await request.body())).convert("RGB")}
        else:
            data = await request.json()
        try:
            return JSONResponse(handler(data))
        except Exception as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_level="warning")
    listening = config.bind_socket()
    listening.listen()  # before its address is told
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    print(f"serving on {address}: {folder}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve(*sys.argv[1:])

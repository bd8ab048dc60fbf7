"""A plain server of one model: transformers' pipeline behind the Hugging Face inference JSON."""

import base64
import io
import sys

import uvicorn
from PIL.Image import open as open_image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import pipeline


def serve(folder: str, task: str) -> None:
    """Serve until the process is ended."""
    classify = pipeline(task, model=folder, device="cpu")

    async def answer(request: Request) -> JSONResponse:
        data = await request.json()
        inputs = data["inputs"]
        if task == "image-classification":
            inputs = open_image(io.BytesIO(base64.b64decode(inputs)))
        return JSONResponse(classify(inputs, **data["parameters"]))

    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    config = uvicorn.Config(app, port=0, log_level="warning")
    listening = config.bind_socket()
    listening.listen()  # before its address is told
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    print(f"serving on {address}: {folder}", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve(*sys.argv[1:])

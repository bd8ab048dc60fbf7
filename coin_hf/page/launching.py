"""Open a coded repository's page, and serve it until told to stop."""

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.hub.client import local_folder
from coin_hf.page.examples import draw_examples
from coin_hf.page.inputs import LIMITS
from coin_hf.page.layout import make_page
from coin_hf.page.look import CSS, theme


def open_page(target: str, revision: str | None = None, *, device: str = "cpu") -> Any:
    """Load a coded repository with its experts, and make its page.

    Args:
        target: Folder or Hub id.
        revision: Its revision on the Hub.
        device: Device of the networks.

    Returns:
        The page, for `launch`.

    Raises:
        InputError: If the repository or an expert cannot be loaded.

    Example:
        launch(open_page("me/coded"))
    """
    ensemble = CodedEnsemble.from_pretrained(target, revision, experts=True, device=device)
    folder = local_folder(target)
    with tempfile.TemporaryDirectory() as drawn:  # the page keeps copies of its own
        examples, note = draw_examples(ensemble, Path(drawn))
        return make_page(
            ensemble, target if folder is None else folder.resolve().name, examples, note
        )


def launch(page: Any, host: str | None = None, port: int | None = None) -> None:
    """Serve a page until SIGTERM or SIGINT.

    Args:
        page: What `open_page` returns.
        host: Address to listen on; by default that of `GRADIO_SERVER_NAME`, as Spaces set it, else
            127.0.0.1.
        port: Its port; 0 for a free one. By default that of `GRADIO_SERVER_PORT`, else the first
            free one from 7860 on.

    Raises:
        InputError: If the address is in use, or not this machine's.
    """
    with _stopping() as stopped:
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=_free_port() if port == 0 else port,
                theme=theme(),
                css=CSS,
                share=False,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                max_file_size=LIMITS.body,
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError as error:
            raise InputError(_in_use(host or "127.0.0.1", port)) from error
        line = f"serving on {url.rstrip('/')} : open it in a browser; Ctrl-C ends it"
        print(line, file=sys.stderr, flush=True)
        stopped.wait()
        page.close(verbose=False)


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before anything is loaded for it.

    Args:
        host: The address.
        port: The port.

    Raises:
        InputError: If it is in use, or not this machine's.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise InputError(_in_use(host, port)) from error


@contextmanager
def own_uploads() -> Iterator[None]:
    """Keep what visitors upload in a folder of this process, removed at its end.

    By default Gradio leaves it in a folder that all pages of a machine share.

    Yields:
        Nothing.
    """
    with tempfile.TemporaryDirectory(prefix="coin-hf-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["GRADIO_TEMP_DIR"]


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Wait for SIGTERM or SIGINT, in place of ending at once."""
    stopped = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_use(host: str, port: int | None) -> str:
    at = host if port is None else f"{host}, port {port}"
    return f"cannot listen on {at}: choose another port, or 0 for a free one"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

"""Commands that show coded models to people."""

from typing import Annotated

import typer

from coin_hf.cli.extras import needs
from coin_hf.cli.output import say

Target = Annotated[str, typer.Argument(metavar="TARGET", help="Folder or Hub id.")]


def app(
    target: Target,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = 7860,
    revision: Annotated[str | None, typer.Option(help="Revision on the Hub.")] = None,
    device: Annotated[str, typer.Option(help="Device of the networks.")] = "cpu",
) -> None:
    """Open a page to try a coded model on: switch experts off and compare the decoded answers."""
    with needs("app"):
        from coin_hf.page.launching import launch, open_page, own_uploads
    say(f"loading {target}")
    with own_uploads():
        launch(open_page(target, revision, device=device), host, port)

"""Commands that show coded models to people."""

from pathlib import Path
from typing import Annotated

import typer

from coin_hf.cli.extras import needs
from coin_hf.cli.output import say
from coin_hf.errors import InputError

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
        from coin_hf.page.launching import check_port, launch, open_page, own_uploads
    check_port(host, port)
    say(f"loading {target}")
    with own_uploads():
        launch(open_page(target, revision, device=device), host, port)


def space(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Hub id of the coded model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub id of the Space.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write its files here too.")
    ] = None,
    push: Annotated[bool, typer.Option("--push/--no-push", help="Push it to the Hub.")] = True,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Revision of the coded model to pin it to.")
    ] = None,
) -> None:
    """Write the Space of a coded model, the page of `coin-hf app`, and push it."""
    if not push and output is None:
        raise InputError(
            "say where the Space is written: add --output FOLDER, or leave out --no-push"
        )
    from coin_hf.page.space import check_empty, push_space, space_files, write_space

    if output is not None:
        check_empty(output)
    if push:
        from coin_hf.repository.push import check_push

        check_push(repo, repo_type="space")
    with needs("app"):  # whose version of Gradio the Space is to have
        files = space_files(target, repo, revision)
    if output is not None:
        write_space(output, files)
        say(f"saved to {output}")
    if push:
        print(push_space(repo, files, private=private))

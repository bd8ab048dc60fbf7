"""What a visitor gives: an image's file, a text or a pair of texts, checked before it is used."""

from pathlib import Path
from typing import Any

import gradio as gr

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.serve.question import question
from coin_hf.serve.settings import LimitBlock

LIMITS = LimitBlock()
LETTERS = 20_000
"""Most letters of a text: far more than the tokens that text classifiers take."""


def components(ensemble: CodedEnsemble) -> list[Any]:
    """Make the components that take an input of the ensemble's kind.

    Args:
        ensemble: The ensemble.

    Returns:
        An image, a text, or two texts.
    """
    if ensemble.coin.task is None:
        image = gr.Image(label="Image", sources=["upload", "clipboard"], height=240, buttons=[])
        # Gradio opens an image before anybody can refuse it, and turns and converts it: the
        # networks would see another one than a server's.
        image.preprocess = _uploaded
        return [image]
    longest = getattr(ensemble.coded.preprocessing, "longest", None)
    info = f"Cut to {longest} tokens, the most that the networks take." if longest else None
    if not pairs(ensemble):
        return [gr.Textbox(label="Text", info=info, lines=4)]
    return [gr.Textbox(label=f"{which} text", lines=3, info=info) for which in ("First", "Second")]


def pairs(ensemble: CodedEnsemble) -> bool:
    """Return whether the networks classify pairs of texts, as their datasets say.

    Args:
        ensemble: The ensemble.

    Returns:
        True where a dataset names two columns of text.
    """
    columns = [block.text for block in ensemble.coin.datasets.values()]
    return any(isinstance(each, tuple) and len(each) == 2 for each in columns)


def prepared(ensemble: CodedEnsemble, given: tuple[Any, ...]) -> Any:
    """Check what was given and preprocess it as a server does.

    Args:
        ensemble: The ensemble.
        given: The values of `components`.

    Returns:
        The networks' input, without batch axis.

    Raises:
        InputError: If there is none, or it cannot be used.
    """
    if ensemble.coin.task is None:
        [path] = given
        if path is None:
            raise InputError("give an image first: upload one, paste one, or take an example")
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise InputError(
                f"the image cannot be read ({error.strerror}): upload it again"
            ) from error
        asked = question(raw, ensemble.preprocess, "image-classification", LIMITS)
        return asked.prepared
    texts = [text or "" for text in given]
    if not all(text.strip() for text in texts):
        some = "a text" if len(texts) == 1 else "both texts"
        raise InputError(f"give {some} first: write, or take an example")
    letters = max(map(len, texts))
    if letters > LETTERS:
        raise InputError(
            f"the text has {letters} letters, above the limit of {LETTERS}: give a shorter one"
        )
    if len(texts) == 1:
        return question(texts[0], ensemble.preprocess, "text-classification", LIMITS).prepared
    return ensemble.preprocess(tuple(texts))


def _uploaded(payload: Any) -> str | None:
    """Return the path of an uploaded file as it came; Gradio has put it among the uploads."""
    return None if payload is None else payload.path

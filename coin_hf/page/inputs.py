"""What a visitor gives: an image's file, a text or a pair of texts, checked before it is used."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

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
        return [gr.Image(label="Image", sources=["upload", "clipboard"], height=240, buttons=[])]
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
        given: The values of `components`, as a client sent them: Gradio opens an image before
            anybody can refuse it, and turns and converts it, so that the networks would see
            another one than a server's.

    Returns:
        The networks' input, without batch axis.

    Raises:
        InputError: If there is none, or it cannot be used.
    """
    if ensemble.coin.task is None:
        if given[0] is None:
            raise InputError("give an image first: upload one, paste one, or take an example")
        raw = _uploaded(given[0])
        asked = question(raw, ensemble.preprocess, "image-classification", LIMITS)
        return asked.prepared
    texts = [text if isinstance(text, str) else "" for text in given]
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


def _uploaded(payload: Any) -> bytes:
    """Read an uploaded file, and no other: what a client sends names any path it likes."""
    named = payload.get("path") if isinstance(payload, dict) else None
    path = Path(named if isinstance(named, str) else "").resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise InputError("the image is not there any more: upload it again")
    return path.read_bytes()


def named(ensemble: CodedEnsemble, asked: Any, off: Any) -> tuple[str, list[str]]:
    """Check the experts that a client names.

    Args:
        ensemble: The ensemble.
        asked: The expert whose answer is wanted.
        off: The experts that are switched off.

    Returns:
        Both, the latter in the experts' order.

    Raises:
        InputError: If there is no such expert.
    """
    given = [asked, *(off if isinstance(off, list) else [off])]
    for name in given:
        if name not in ensemble.names:
            raise InputError(f"there is no such expert: they are named {', '.join(ensemble.names)}")
    return asked, [name for name in ensemble.names if name in given[1:]]

"""Lay the page out: the input, who is asked and who is off, the answers, what was measured."""

import html
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import gradio as gr

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.page.answering import Answers, answer, erased, refusal
from coin_hf.page.examples import Example
from coin_hf.page.inputs import components, named, prepared
from coin_hf.reports.erasure_drawing import erasure_drawing
from coin_hf.reports.safe_text import escaped, safe
from coin_hf.reports.tables import alone_note, labels_table, table
from coin_hf.serve.answers import elements

TOP = 5
"""Classes of an answer that are shown."""
WAITING = "*Give an input and press Answer.*"


def make_page(
    ensemble: CodedEnsemble, name: str, examples: Sequence[Example] = (), note: str | None = None
) -> Any:
    """Make the page of an ensemble.

    Args:
        ensemble: The ensemble, its experts loaded.
        name: Its Hub id, or its folder's name.
        examples: Inputs to start from.
        note: Why there are no examples, if there are none.

    Returns:
        Gradio Blocks, to be launched by `coin_hf.page.launching.launch`.
    """
    page = gr.Blocks(
        title=f"{name} · erasure-coded inference",
        analytics_enabled=False,
        delete_cache=(3600, 3600),
    )
    with page:
        _connect(ensemble, _laid_out(ensemble, name, examples, note))
    return page


class _Parts(NamedTuple):
    """The components that events read and write."""

    given: list[Any]
    asked: Any
    off: Any
    press: Any
    own: Any
    decoded: Any
    facts: Any
    caption: Any
    drawing: Any


def _laid_out(
    ensemble: CodedEnsemble, name: str, examples: Sequence[Example], note: str | None
) -> _Parts:
    """Place the components: what is given on the left, what comes of it on the right."""
    names = ensemble.names
    gr.Markdown(_introduction(ensemble, name))
    with gr.Row():
        with gr.Column():
            given = components(ensemble)
            asked = gr.Radio(
                names, value=names[-1], label="Ask", info="The expert whose answer you want."
            )
            off = gr.CheckboxGroup(
                names,
                value=[],
                label="Switch off",
                info="Experts that are down: none of them runs.",
            )
            press = gr.Button("Answer", variant="primary")
            _examples(examples, note, given, asked)
        with gr.Column():
            with gr.Row():
                own = gr.Label(label="Expert's own answer", num_top_classes=TOP)
                decoded = gr.Label(label="Decoded answer", num_top_classes=TOP)
            facts = gr.Markdown(WAITING, elem_classes="facts")
            caption = gr.Markdown(_caption(ensemble, names[-1], []))
            drawing = gr.HTML(
                _drawing(ensemble, names[-1], []),
                elem_classes=["drawing", "scrolling"],
                label="The erasure",
            )
    gr.Markdown(_measured(ensemble), elem_classes="scrolling")
    return _Parts(given, asked, off, press, own, decoded, facts, caption, drawing)


def _connect(ensemble: CodedEnsemble, parts: _Parts) -> None:
    """Answer when asked to; draw the erasure as it is chosen."""

    def on_answer(asked: Any, off: Any, *values: Any) -> list[Any]:
        try:
            asked, off = named(ensemble, asked, off)
            found = answer(ensemble, prepared(ensemble, values), asked, off)
        except InputError as error:
            raise _toast(error) from error
        return [
            gr.Label(_scores(found, "own"), label=_title(found, "own", asked)),
            gr.Label(_scores(found, "decoded"), label=_title(found, "decoded", asked)),
            _facts(found, asked, off),
        ]

    def on_choice(asked: str, off: list[str]) -> list[Any]:
        reason = refusal(ensemble, asked, off)
        if reason is not None:
            gr.Warning(html.escape(reason), title="Too many are switched off")
        return [_caption(ensemble, asked, off), _drawing(ensemble, asked, off)]

    written = [each for each in parts.given if isinstance(each, gr.Textbox)]
    gr.on(
        [parts.press.click, *(each.submit for each in written)],
        on_answer,
        [parts.asked, parts.off, *parts.given],
        [parts.own, parts.decoded, parts.facts],
        api_name="answer",
        preprocess=False,  # `named` and `prepared` check what came
        show_progress_on=parts.facts,
    )
    gr.on(
        [parts.asked.change, parts.off.change],
        on_choice,
        [parts.asked, parts.off],
        [parts.caption, parts.drawing],
        api_name="erase",
        show_progress="hidden",
    )


def _introduction(ensemble: CodedEnsemble, name: str) -> str:
    count = len(ensemble.coded_models)
    models = "one **coded model**" if count == 1 else f"{count} **coded models**"
    down = "it is" if count == 1 else f"up to {count} of them are"
    return (
        f"# {escaped(name)}\n\n{len(ensemble.names)} experts and {models}. Any expert's answer is "
        f"computed from the others' while {down} switched off: give an input, switch experts off, "
        "and see what is lost."
    )


def _examples(
    examples: Sequence[Example], note: str | None, given: Sequence[Any], asked: Any
) -> None:
    """Show the examples, or say why there are none."""
    if not examples:
        reason = f" ({escaped(note)})" if note else ""
        gr.Markdown(f"*No examples: the test data is not at hand{reason}.*")
        return
    rows = [
        [*(each.value if isinstance(each.value, tuple) else [each.value]), each.expert]
        for each in examples
    ]
    gr.Examples(
        rows,
        [*given, asked],
        label="Examples from the experts' test data",
        example_labels=[
            each.expert if each.label is None else f"{each.expert}: {each.label}"
            for each in examples
        ],
        cache_examples=False,
        api_visibility="private",
    )


def _toast(error: InputError) -> Exception:
    """Turn a user's mistake into a toast, which shows HTML."""
    toast: Exception = gr.Error(
        html.escape(str(error)), title="Not answered", print_exception=False
    )
    return toast


def _caption(ensemble: CodedEnsemble, asked: str, off: Collection[str]) -> str:
    name = escaped(asked)
    if refusal(ensemble, asked, off) is not None:
        return f"**The erasure.** Too many are switched off to decode '{name}'."
    if asked in off:
        return f"**The erasure.** '{name}' is switched off: this is how its answer is decoded."
    return f"**The erasure.** '{name}' answers; this is how it would be decoded if it did not."


def _drawing(ensemble: CodedEnsemble, asked: str, off: Collection[str]) -> str:
    missing = erased(ensemble, asked, off)
    code = ensemble.code
    return erasure_drawing(code.rows, ensemble.names, missing, labels=code.labels, theme="light")


def _scores(found: Answers, which: str) -> dict[str, float] | None:
    """Return the softmax of an answer's logits by class, for bars."""
    shown = found.own if which == "own" else found.decoded
    if shown is None:
        return None
    return {
        each["label"]: each["score"] for each in elements(shown.logits, found.labels, top_k=TOP)
    }


def _title(found: Answers, which: str, asked: str) -> str:
    if which == "own":
        return f"{asked}'s own answer" if found.own else f"{asked} is switched off"
    return f"{asked}, decoded" if found.decoded else f"{asked} cannot be decoded now"


def _facts(found: Answers, asked: str, off: Collection[str]) -> str:
    """Compare both answers in a few lines."""
    names = ", ".join(map(escaped, off))
    lines = [
        f"Asked: {escaped(asked)}. Switched off: {names or 'none'}.",
        "",
        f"| | {escaped(asked)}'s own | decoded |",
        "|---|---|---|",
    ]
    both = (found.own, found.decoded)
    classes = ["-" if a is None else escaped(found.labels[int(a.logits.argmax())]) for a in both]
    times = ["-" if a is None else f"{1000 * a.seconds:.3g} ms" for a in both]
    ran = ["-" if a is None else str(a.networks) for a in both]
    lines += [
        f"| class | {classes[0]} | {classes[1]} |",
        f"| networks run | {ran[0]} | {ran[1]} |",
        f"| time, one by one | {times[0]} | {times[1]} |",
    ]
    said = "\n".join(lines)
    if found.agree is not None and found.own is not None:
        low, high = float(found.own.logits.min()), float(found.own.logits.max())
        said += (
            f"\n\n**{'Same class' if found.agree else 'Another class'}.** The logits differ by at "
            f"most {found.difference:.3g}; the expert's own lie between {low:.3g} and {high:.3g}."
        )
    elif found.decoded is None:
        said += "\n\nIt could not be decoded: too many others are switched off."
    return f"{said} A coded model alone says {escaped(found.labels[found.alone])}."


def _measured(ensemble: CodedEnsemble) -> str:
    """Render what was measured of the repository."""
    result = safe(ensemble.result)
    if not result.singles:
        return f"## On the test data\n{table(result, 'markdown')}."
    labels = f"\n\n{labels_table(result, 'markdown')}" if result.label_sets is not None else ""
    return (
        "## On the test data\nNDA: right answers decoded, in percent of the expert's own right "
        f"answers.{alone_note(result)}\n\n{table(result, 'markdown')}{labels}"
    )

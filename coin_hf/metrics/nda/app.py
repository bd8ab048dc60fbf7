"""The metric's Space: a form to try it on."""

import math
from pathlib import Path

import gradio as gr
from nda import nda  # type: ignore[import-not-found]  # the file beside this one

FIELDS = ("predictions", "references", "expert_predictions")
LABELS = ("Predictions (decoded)", "References", "Expert's predictions")
START = ("0, 1, 2, 2", "0, 1, 2, 3", "0, 1, 2, 3")


def classes(name: str, text: str | None) -> list[int]:
    """Read class numbers.

    Args:
        name: The field, for messages.
        text: Whole numbers between commas or spaces.

    Returns:
        The numbers.

    Raises:
        Error: If something else is among them, or there is none.
    """
    try:
        found = [int(word) for word in (text or "").replace(",", " ").split()]
    except ValueError:
        found = []
    if not found:
        raise gr.Error(
            f"{name} must be whole numbers between commas, such as 0, 1, 2", print_exception=False
        )
    return found


def compute(*texts: str) -> dict[str, float | None]:
    """Compute the metric from the form's three fields.

    Args:
        texts: Predictions, references and the expert's predictions.

    Returns:
        What `nda` returns, None for nan, which JSON does not know.

    Raises:
        Error: If the fields cannot be read, or differ in length.
    """
    read = [classes(name, text) for name, text in zip(FIELDS, texts, strict=True)]
    try:
        found = nda(*read)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return {name: None if math.isnan(value) else value for name, value in found.items()}


with gr.Blocks(title="NDA", analytics_enabled=False) as page:
    gr.Markdown("# NDA\nHow much of a classifier's accuracy is kept when its answer is decoded.")
    with gr.Row():
        with gr.Column():
            fields = [
                gr.Textbox(value, label=label) for label, value in zip(LABELS, START, strict=True)
            ]
            press = gr.Button("Compute", variant="primary")
        result = gr.JSON(label="Result")
    card = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    gr.Markdown(card.split("---\n", 2)[2])
    gr.on([press.click, *(field.submit for field in fields)], compute, fields, result)

if __name__ == "__main__":
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    page.launch(theme=gr.themes.Default(primary_hue="blue", **fonts), share=False, footer_links=[])

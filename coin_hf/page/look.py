"""How the page looks: fonts of the system, light and dark, wide and narrow screens."""

from typing import Any

import gradio as gr

from coin_hf.reports.svg import dark_rules

CSS = (
    dark_rules(".dark")
    + """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.gradio-container { width: 100%; min-width: 0; }
.drawing svg { width: 100%; min-width: 440px; height: auto; }
.drawing .erasure .fill-paper { fill: var(--body-background-fill); }
.scrolling.drawing { overflow-x: auto; }
.scrolling table { display: block; overflow-x: auto; max-width: 100%; border: 0; }
.scrolling td, .scrolling th { white-space: nowrap; }
.facts table { display: block; overflow-x: auto; max-width: 100%; border: 0; }
.facts td, .facts th { padding: 4px 8px; word-break: normal; overflow-wrap: normal; }
"""
)
"""What scrolls sideways does so within itself, never the page."""


def theme() -> Any:
    """Return the theme: nothing of it is fetched from elsewhere.

    Returns:
        A Gradio theme.
    """
    return gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400")

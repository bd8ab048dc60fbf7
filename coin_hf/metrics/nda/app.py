"""The metric's Space: a form in which to try it."""

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load("nda.py"))

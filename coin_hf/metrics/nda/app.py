"""The metric's Space: a form to try it out."""

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load("nda.py"))

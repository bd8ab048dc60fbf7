"""The drawing that stands for a coded model: its last expert missing."""

from coin_hf.records.result import ResultRecord
from coin_hf.reports.erasure_drawing import Theme, erasure_drawing


def result_drawing(result: ResultRecord, theme: Theme = "auto") -> str:
    """Draw a coded model's experts with the last one missing, as the card's code has it.

    Args:
        result: The result.
        theme: Of `erasure_drawing`.

    Returns:
        SVG.
    """
    names = [expert.name for expert in result.experts]
    missing = [len(names) - 1]
    return erasure_drawing(result.betas, names, missing, labels=result.label_sets, theme=theme)


def drawn(result: ResultRecord) -> str:
    """Say what the drawing shows, for those who do not see it.

    Args:
        result: The result, safe to show as Markdown.

    Returns:
        Half a sentence.
    """
    last = result.experts[-1].name
    return f"{last} is missing; its answer is decoded from those of the other networks"

"""Render the model card from the result alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import ModelCard

from coin_hf.erasure.amplification import worst_amplification
from coin_hf.erasure.betas import rows_of
from coin_hf.evaluation.methods import CODED_ALONE
from coin_hf.hub.layout import DRAWING, FIGURE, coded_folder
from coin_hf.recipe.blocks import FisherBlock
from coin_hf.records.coin import ExpertRecord
from coin_hf.records.measurements import Scores
from coin_hf.records.result import ResultRecord
from coin_hf.reports.card_data import metadata, on_hub
from coin_hf.reports.card_usage import inputs_of, usage
from coin_hf.reports.drawn_result import drawn
from coin_hf.reports.safe_text import plain_id, safe
from coin_hf.reports.tables import alone_note, cell, few, labels_table, table

PAPER = "https://arxiv.org/abs/2409.01420"
HOW = {
    "coin": f"by Fisher averaging ([COIN, arXiv:2409.01420]({PAPER}))",
    "averaging": f"by plain averaging, a baseline of [COIN, arXiv:2409.01420]({PAPER})",
    "task_arithmetic": f"by task arithmetic, a rival of [COIN, arXiv:2409.01420]({PAPER})",
    "regmean": f"by RegMean, a rival of [COIN, arXiv:2409.01420]({PAPER})",
    "distillation": f"by distillation, a rival of [COIN, arXiv:2409.01420]({PAPER})",
}
"""How each coder makes the coded model."""


def model_card(result: ResultRecord | Mapping[str, Any], repo_id: str) -> ModelCard:
    """Render the card of a coded model.

    Args:
        result: The result, or the content of its `result.json`.
        repo_id: The Hub id that its code blocks load.

    Returns:
        The card: metadata and text.
    """
    result = ResultRecord.of(result)
    data = metadata(result, repo_id)
    text = _text(safe(result), plain_id(repo_id))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _text(result: ResultRecord, repo_id: str) -> str:
    samples = result.samples
    named = result.label_sets is None and any(e.labels for e in result.experts)
    experts = "\n".join(
        f"| {cell(e.name)} | {_link(e.model)}{_base(e)} | `{e.revision}` | {cell(e.dataset)} |"
        + f" {cell(few(e.labels or ['-']))} |" * named
        for e in result.experts
    )
    held = f", {samples.held_out:.0%} of them held out" if samples.held_out else ""
    return f"""# {repo_id.rpartition("/")[2]}

{_introduction(result)}{_own_accuracy(result)}

![{drawn(result)}]({DRAWING})

## How it was made
| | |
|---|---|
| coder | `{result.coder}` |
{_betas(result)}
{_settings(result)}{_refined(result)}| samples | P = {samples.count}, {samples.per_expert} from each expert's data, seed {samples.seed}{held}; no label enters the parameters |

| expert | repository | revision | dataset |{" labels |" * named}
|---|---|---|---|{"---|" * named}
{experts}
{_labels(result)}
## How well it answers for a missing expert
{_measurements(result)}

## How to use it
{usage(result, repo_id)}

## Limits
The decoded answer is approximate: read the table, not only its best row. The experts' own limits and licences
apply to what is made of them.
"""


def _labels(result: ResultRecord) -> str:
    """Say which labels each expert has, where they differ."""
    if result.label_sets is None:
        return ""
    return f"""
The experts have labels of their own. This model has a logit for each label of any of them; an expert's answer has
its own alone. Labels that no other expert shares are decoded from the coded model alone, divided by the expert's β,
whatever else is missing.

{labels_table(result, "markdown")}
"""


def _base(expert: ExpertRecord) -> str:
    """Name the base of an adapter."""
    if expert.base is None:
        return ""
    return f", an adapter merged into {_link(expert.base)} at `{expert.base_revision}`"


def _introduction(result: ResultRecord) -> str:
    experts, coded = len(result.experts), len(rows_of(result.betas))
    trained = "" if result.coder == "distillation" else "without training "
    if coded == 1:
        return f"""A **coded model**: one more network, made {trained}from {experts} fine-tuned `{result.architecture}`
networks ("experts"). Its output approximates a weighted average of theirs, so when one expert is slow or
down, its answer is computed from this model's answer and the others' — erasure-coded inference, {HOW[result.coder]}. On its own it is a classifier like any merged model."""
    folders = ", ".join(f"`{coded_folder(c)}`" for c in range(1, coded))
    return f"""{coded} **coded models**, made {trained}from {experts} fine-tuned `{result.architecture}` networks ("experts"): one at
the root of this repository, the others in {folders}. The output of each approximates another weighted average of
theirs, so when up to {min(coded, experts)} experts are slow or down, their answers are computed from the coded models' and the
others' — erasure-coded inference, {HOW[result.coder]}. On its own each is a
classifier like any merged model."""


def _own_accuracy(result: ResultRecord) -> str:
    """Say how often a coded model is right by itself, on each expert's test data."""
    found = [(e.missing, e.scores[CODED_ALONE]) for e in result.singles if CODED_ALONE in e.scores]
    shares = [
        f"{100 * score.decoded_accuracy:.1f} % for {name}"
        for name, score in found
        if score.decoded_accuracy is not None
    ]
    if not shares:
        return ""
    one = len(rows_of(result.betas)) == 1
    return (
        f"\nAlone, {'it' if one else 'the one that weights the expert most'} is right on this share of the "
        f"experts' test {inputs_of(result)}: {', '.join(shares)}."
    )


def _betas(result: ResultRecord) -> str:
    """Render the table rows for the betas and their error amplification."""
    names = [expert.name for expert in result.experts]
    rows = rows_of(result.betas)
    lines = [
        ", ".join(f"{beta:g} ({cell(name)})" for beta, name in zip(row, names, strict=True))
        for row in rows
    ]
    if len(rows) == 1:
        return f"| β | {lines[0]} |"
    lines = [f"| β of `{coded_folder(c)}` | {line} |" for c, line in enumerate(lines)]
    lines.append(
        f"| worst amplification of a coded model's error | {worst_amplification(rows):.3g} |"
    )
    return "\n".join(lines)


def _measurements(result: ResultRecord) -> str:
    if not result.erasures:
        return """**Not measured.** These parameters were re-coded from the experts' saved Fishers, without data, by
`coin-hf recode`; no accuracy is known until `coin-hf evaluate FOLDER --save` is run on them."""
    run = result.run
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    precision = f", {run.precision}" if run.precision else ""
    return f"""NDA = 100 × (right answers decoded) / (right answers of the expert itself), in percent, on the split
`{result.evaluation.split}`: {_points(result)}. Agreement counts equal answers of the two; the coding loss is the mean squared
distance of this model's logits from the exact weighted average. *Output average* decodes from that exact
average (100 by construction); *no coded model* takes the other experts' answer as it is.{alone_note(result)}

{table(result, "markdown")}

![Normalized decoding accuracy by missing expert and method]({FIGURE})
{_detection(result)}{_left_out(result)}
Run on {run.device}, {run.processes} process(es){precision}; {versions}. All numbers are rendered from `result.json`."""


def _left_out(result: ResultRecord) -> str:
    if not result.damaged:
        return ""
    counts = ", ".join(f"{count} of {place}" for place, count in result.damaged.items())
    what = "Rows without a text" if result.task else "Images that cannot be decoded"
    return f"\n{what} were left out (`skip_damaged`): {counts}.\n"


def _detection(result: ResultRecord) -> str:
    found = result.detection
    if not found or result.calibration is None:
        return ""
    quantile = result.calibration.quantile
    noticed = ", ".join(f"{100 * each.noticed:.0f} % for {each.expert}" for each in found)
    alarms = ", ".join(f"{100 * each.false_alarms:.1f} %" for each in found)
    return f"""
With all answers at hand, the parity check notices a corrupted one (not whose it is). Its threshold, {quantile:.0%} of
the samples, gave false alarms for {alarms} of the test {inputs_of(result)}; with one expert's logits shifted by one class
it noticed {noticed}.
"""


def _link(model: str) -> str:
    return (
        f"[{model}](https://huggingface.co/{model})" if on_hub(model) else f"`{model}` (a folder)"
    )


def _settings(result: ResultRecord) -> str:
    """Render the table rows specific to the coder."""
    rows: dict[str, str] = {}
    if result.coder == "coin":
        rows = {"λ": f"{result.lam:g} ({_chosen(result)})", "Fisher": _fisher(result.fisher)}
    elif result.task_arithmetic is not None:
        block = result.task_arithmetic
        foundation = f"{_link(block.foundation)}, revision `{block.revision}`"
        rows = {"foundation": foundation, "α": f"{block.alpha:g} ({_chosen(result)})"}
    elif (settings := result.regmean or result.distillation) is not None:
        rows = {key: f"{value}" for key, value in settings.model_dump().items()}
    return "".join(f"| {key} | {value} |\n" for key, value in rows.items())


def _refined(result: ResultRecord) -> str:
    """Render the table rows for augmentation and refinement."""
    several = len(rows_of(result.betas)) > 1
    lines = []
    if result.augment is not None:
        block = result.augment
        kinds = ", ".join(block.transforms)
        what = "distillation" if result.coder == "distillation" else "RegMean"
        users = [what] if result.coder in ("regmean", "distillation") else []
        users += ["the steps of `refine`"] if result.refinements else []
        lines.append(
            f"| copies | {block.copies} of each sample ({kinds}), for {' and '.join(users)} |\n"
        )
    for each in result.refinements or ():
        of = f" of coded model {each.coded}" if several else ""
        losses = [
            "no number" if loss is None else f"{loss:.4g}" for loss in (each.before, each.after)
        ]
        verdict = "kept" if each.kept else "dropped"
        lines.append(
            f"| refining{of} | `{each.step}` on {each.samples} inputs, {verdict}: coding loss "
            f"{' → '.join(losses)} on {each.held_out} samples that the step did not see |\n"
        )
    return "".join(lines)


def _chosen(result: ResultRecord) -> str:
    before = result.recoded_from
    if before is not None:
        return "kept when re-coding" if before.lam == result.lam else "given when re-coding"
    choice = result.choice
    if choice is None:
        return "given in the recipe"
    by = "NDA" if choice.by == "nda" else choice.by
    final = f"best {by} among {_values(choice.finalists)} on {choice.samples} samples"
    few = [entry["samples"] for entry in choice.scores if entry not in choice.finalists]
    if not few:
        return f"{final}, no test data"
    return f"{final}, the best on {few[0]} of them among {_values(choice.scores)}; no test data"


def _values(scores: Iterable[Scores]) -> str:
    return ", ".join(f"{entry['value']:g}" for entry in scores)


def _fisher(used: FisherBlock) -> str:
    if used.estimator == "exact":
        return "exact diagonal, raw logits"
    return f"diagonal estimated with {used.probes} random probes for each sample, raw logits"


def _points(result: ResultRecord) -> str:
    return ", ".join(f"{e.points} {inputs_of(result)} for {e.missing}" for e in result.singles)

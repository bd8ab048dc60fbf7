"""The card of a fine-tuned expert: what was done, on what, and how well it answers."""

from typing import Any

from huggingface_hub import ModelCardData

from making.networks import Network

PAPER = "https://arxiv.org/abs/2409.01420"


def card(network: Network, record: dict[str, Any], *, trained: bool) -> str:
    """Render the card.

    Args:
        network: The network.
        record: The content of `training.json`.
        trained: Whether it is the expert, or the start before training.

    Returns:
        The text of README.md.
    """
    settings = record["settings"]
    on_hub = network.origin is not None and not network.origin.startswith((".", "/", "~"))
    known = settings["dataset"].startswith((".", "/", "~"))
    data = ModelCardData(
        base_model=network.origin if on_hub else None,
        base_model_relation="finetune" if on_hub and trained else None,
        datasets=None if known or not trained else [settings["dataset"]],
        library_name=network.library,
        license=network.license,
        pipeline_tag="image-classification",
        tags=["image-classification", "coin-hf"],
    )
    text = _trained(network, record) if trained else _start(network, settings)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _from(network: Network) -> str:
    if network.origin is None:
        return f"`{network.architecture}` with random weights"
    return f"`{network.origin}` (revision `{network.revision}`)"


def _start(network: Network, settings: dict[str, Any]) -> str:
    return f"""# Start of an experiment: {network.architecture}

{_from(network)} with a head of {len(network.label_names)} classes that is not trained (seed
{settings["head_seed"]}). Experts fine-tuned from it differ from it by their task vectors; it is no classifier.
"""


def _trained(network: Network, record: dict[str, Any]) -> str:
    settings, history = record["settings"], record["history"]
    names = network.label_names
    kept = ", ".join(
        str(names[label]) if isinstance(label, int) else label for label in settings["labels"]
    )
    found = (
        f"{100 * history[-1]['accuracy']:.2f} % of {record['held_out']} rows of the training split "
        "that were held out"
        if history
        else "not measured"
    )
    batch_norm = "trained" if settings["train_batch_norm"] else "frozen, statistics and parameters"
    return f"""# {network.architecture}, an expert on {settings["dataset"]}

Fine-tuned from {_from(network)} to be coded with others of its experiment by
[coin-hf]({PAPER}).

| | |
|---|---|
| data | `{settings["dataset"]}`, split `{settings["split"]}`, revision `{record["dataset_revision"]}` |
| classes | {kept or "all"} |
| rows | {record["rows"]} |
| epochs, learning rate, batch, weight decay | {settings["epochs"]}, {settings["lr"]:g}, {settings["batch_size"]}, {settings["weight_decay"]:g} (AdamW, constant) |
| BatchNorm | {batch_norm} |
| augmentation | none: images are prepared as for inference |
| head | seed {settings["head_seed"]}, shared by the experts of one experiment |
| accuracy | {found} |

It knows the classes it was trained on alone, whatever else its head has names for.
"""

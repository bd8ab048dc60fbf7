"""Fine-tune experts with frozen BatchNorm, and write them as timm repositories."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from coin_hf.experts.timm_models import write_timm
from coin_hf.networks.logits import call

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs (B, C, H, W) and classes (B,)."""


def freeze_batch_norm(model: nn.Module) -> None:
    """Freeze BatchNorm's statistics and parameters, as arXiv:2409.01420 advises.

    Experts whose statistics differ do not average well. The modules are kept and switched to eval
    mode; a later `model.train()` switches them back.

    Args:
        model: The network.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)


def fit(
    model: nn.Module,
    batches_of: Callable[[int], Batches],
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    batches: int,
    title: str,
    accelerator: Any = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train in place on cross entropy with AdamW, in the model's current mode.

    Args:
        model: A classifier on its device; parameters that require no gradient stay fixed.
        batches_of: Epoch, from 0 -> its batches; with an accelerator, those of this process.
        epochs: Number of epochs.
        lr: Learning rate, constant.
        weight_decay: AdamW's weight decay.
        batches: Batches per epoch, for the progress bar.
        title: Title of the progress bar.
        accelerator: Averages gradients over its processes, in its mixed precision.
        on_epoch: Called after each epoch with its number, from 1, and the mean loss of this
            process's batches in it.
    """
    trained: Any = model
    optimizer: Any = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=lr,
        weight_decay=weight_decay,
    )
    if accelerator is not None:
        trained, optimizer = accelerator.prepare(model, optimizer)
    silent = accelerator is not None and not accelerator.is_main_process
    with tqdm(total=epochs * batches, desc=title, unit="batch", disable=silent) as bar:
        for epoch in range(epochs):
            losses = []
            for x, y in batches_of(epoch):
                optimizer.zero_grad()
                loss = cross_entropy(call(trained, x), y)
                if accelerator is None:
                    loss.backward()
                else:
                    accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.detach())
                bar.update()
            if on_epoch is not None:
                on_epoch(epoch + 1, torch.stack(losses).mean().item() if losses else math.nan)


def write_timm_expert(
    folder: Path,
    model: nn.Module,
    architecture: str,
    *,
    label_names: Sequence[str],
    pretrained_cfg: dict[str, Any],
    card: str,
    model_args: dict[str, Any] | None = None,
) -> None:
    """Write a network as a timm repository: weights, config.json, card.

    Args:
        folder: Output folder; must not exist.
        model: The network.
        architecture: timm's name for its architecture.
        label_names: K class names.
        pretrained_cfg: Size, mean, standard deviation, interpolation, crop.
        card: The text of README.md.
        model_args: Further arguments of `timm.create_model`.
    """
    folder.mkdir(parents=True)
    config = {
        "architecture": architecture,
        "num_classes": len(label_names),
        "label_names": list(label_names),
        "pretrained_cfg": pretrained_cfg,
        **({"model_args": model_args} if model_args else {}),
    }
    write_timm(folder, model, config)
    (folder / "README.md").write_text(card, encoding="utf-8")

"""Fine-tune one expert and write it as a repository that coin-hf, timm or transformers load.

    accelerate launch recipes/finetune.py --model timm/resnet50.a1_in1k \
        --dataset zalando-datasets/fashion_mnist --labels 0,1,2,3,4 --epochs 5 --output experts/low

BatchNorm is left alone, statistics and parameters, as arXiv:2409.01420 advises. All experts of one
experiment must start from one head: give them one `--head-seed`. `--save-start FOLDER` writes the
network as it is before training, the foundation that task arithmetic needs. By default AdamW with
learning rate 1e-5, weight decay 0.1 and batches of 128, the settings of the paper; see there for
its epochs. A share of the training rows is kept for validation: choose epochs and learning rate on
that accuracy. An output that is already there is left as it is, so that a script can be run again.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from making.card import card
from making.data import Rows, classes_of, rows_of
from making.networks import Network, load_network
from torch.utils.data import DataLoader

from coin_hf.encoding.tracking import logging_accelerator
from coin_hf.errors import InputError
from coin_hf.experts.finetuning import fit, freeze_batch_norm
from coin_hf.networks.logits import call
from coin_hf.recipe.blocks import DatasetBlock
from coin_hf.repository.provenance import environment


def main(
    dataset: Annotated[str, typer.Option(help="Hub id or folder of the data.")],
    output: Annotated[Path, typer.Option(help="Folder for the expert.")],
    model: Annotated[str | None, typer.Option(help="Hub id or folder to start from.")] = None,
    architecture: Annotated[str | None, typer.Option(help="Or a timm name, not trained.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model.")] = None,
    dataset_revision: Annotated[str | None, typer.Option(help="Revision of the data.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the data.")] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    image: Annotated[str | None, typer.Option(help="Image column.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels to keep, such as 0,1,2.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many rows, drawn.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the rows kept for it.")] = 0.1,
    image_size: Annotated[int | None, typer.Option(help="Size of the input, timm only.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    lr: float = 1e-5,
    batch_size: Annotated[int, typer.Option(min=1, help="Over all processes.")] = 128,
    weight_decay: float = 0.1,
    head_seed: Annotated[int, typer.Option(help="Of the head, one for all experts.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draw and order of rows.")] = 0,
    train_batch_norm: Annotated[bool, typer.Option(help="Do not freeze BatchNorm.")] = False,
    keep_head: Annotated[bool, typer.Option(help="Go on with the model's own head.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16.")] = None,
    log_with: Annotated[str | None, typer.Option(help="Tracker: tensorboard, wandb, all.")] = None,
    log_dir: Annotated[Path, typer.Option(help="Folder for a tracker's files.")] = Path("logs"),
    save_start: Annotated[Path | None, typer.Option(help="Folder for the untrained start.")] = None,
    push: Annotated[str | None, typer.Option(help="Hub id to push the expert to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Push it private.")] = False,
) -> None:
    """Fine-tune one expert."""
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in locals().items()}
    if (output / "config.json").is_file():
        _say(Accelerator(), f"{output} is there already, nothing to do")
        return
    accelerator = logging_accelerator(
        log_with, log_dir / output.name, settings, mixed_precision=mixed_precision,
        step_scheduler_with_optimizer=False,
    )  # fmt: skip
    kept = _labels(labels)
    block = DatasetBlock(
        path=dataset, config=config, revision=dataset_revision, split=split, image=image,
        label=label, labels=kept,
    )  # fmt: skip
    with accelerator.main_process_first():
        names = classes_of(block)
        training, held = rows_of(block, limit=limit, validation=validation, seed=seed)
        network = load_network(
            model, architecture, revision, names, image_size=image_size, head_seed=head_seed,
            keep_head=keep_head,
        )  # fmt: skip
    settings["labels"] = list(kept or ())
    record: dict[str, Any] = {
        "settings": settings,
        "revision": network.revision,
        "dataset_revision": training.revision,
        "rows": len(training),
        "held_out": len(held),
        "history": [],
        "versions": environment(),
    }
    if save_start is not None and accelerator.is_main_process and not save_start.exists():
        draft = _draft(save_start)
        network.write(draft, card(network, record, trained=False))
        draft.rename(save_start)
    set_seed(seed)
    network.model.train().requires_grad_(True).to(accelerator.device)
    if not train_batch_norm:
        freeze_batch_norm(network.model)
    loader = DataLoader(
        Images(training, network),
        batch_size=max(1, batch_size // accelerator.num_processes),
        shuffle=True,
        num_workers=workers,
        drop_last=len(training) >= batch_size,
    )
    loader = accelerator.prepare(loader)

    def measure(epoch: int, loss: float) -> None:
        loss = float(accelerator.reduce(torch.tensor(loss, device=accelerator.device), "mean"))
        accelerator.log({"training loss": loss}, step=epoch)
        if not len(held):
            return
        accuracy = _accuracy(network, held, accelerator, batch_size)
        accelerator.log({"held-out accuracy": accuracy}, step=epoch)
        record["history"].append({"epoch": epoch, "accuracy": accuracy})
        _say(accelerator, f"epoch {epoch}: accuracy {100 * accuracy:.2f} on {len(held)} held out")

    fit(
        network.model,
        lambda _: loader,
        epochs=epochs,
        lr=lr,
        weight_decay=weight_decay,
        batches=len(loader),
        title=output.name,
        accelerator=accelerator,
        on_epoch=measure,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        draft = _draft(output)
        network.write(draft, card(network, record, trained=True))
        text = json.dumps(record, indent=2)
        (draft / "training.json").write_text(text + "\n", encoding="utf-8")
        draft.rename(output)
        if push is not None:
            _push(output, push, private=private)
        print(text)
    accelerator.end_training()


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Rows as the network's inputs and classes."""

    def __init__(self, rows: Rows, network: Network) -> None:
        self.rows, self.network = rows, network

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one input (C, H, W) and its class."""
        row = self.rows[index]
        return self.network.preprocessing(row.image), row.truth


@torch.no_grad()
def _accuracy(network: Network, rows: Rows, accelerator: Accelerator, batch_size: int) -> float:
    """Share of rows answered right, each counted once, in eval mode; modes come back."""
    modes = [(module, module.training) for module in network.model.modules()]
    network.model.eval()
    right = torch.zeros((), device=accelerator.device)
    images = Images(rows, network)
    mine = range(accelerator.process_index, len(rows), accelerator.num_processes)
    for first in range(0, len(mine), batch_size):
        pairs = [images[i] for i in mine[first : first + batch_size]]
        x = torch.stack([pair[0] for pair in pairs]).to(accelerator.device)
        y = torch.tensor([pair[1] for pair in pairs], device=accelerator.device)
        with accelerator.autocast():
            right += (call(network.model, x).argmax(1) == y).sum()
    for module, training in modes:
        module.training = training
    return float(accelerator.reduce(right, "sum")) / len(rows)


def _draft(folder: Path) -> Path:
    """Where a folder is written, so that it appears whole or not at all."""
    return folder.with_name(f".{folder.name}.{os.getpid()}")


def _labels(text: str | None) -> tuple[int | str, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _push(folder: Path, repo: str, *, private: bool) -> None:
    from huggingface_hub import HfApi

    from coin_hf.hub.sentences import sentences

    with sentences(repo, None, "model"):
        HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Add expert")


def _say(accelerator: Accelerator, line: str) -> None:
    if accelerator.is_main_process:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

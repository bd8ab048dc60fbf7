"""Fine-tune MiniLM on a dataset of texts, all of it or an adapter, with a head of its own."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoTokenizer, BertForSequenceClassification

from coin_hf.repository.atomic import write_whole

STEPS, CHECKED = 200, 50
"""Steps of a run, and after how many its validation accuracy is measured."""
BATCH, WARM_UP, DECAY = 16, 12, 0.01
"""Texts a step, steps in which the rate grows from zero, and weight decay."""
MAX_LENGTH = 32
"""Tokens that texts are cut to."""
SAID = "training.json"
"""The file beside an expert that tells how it was made."""


def finetune(
    foundation: Path, data: Path, folder: Path, *, rate: float, seed: int, adapter: bool = False
) -> dict[str, Any]:
    """Fine-tune, and keep the parameters of the best validation accuracy among those measured.

    The rate grows over the first steps, then falls to zero at the last. What is there already is
    not made again.

    Args:
        foundation: A sequence classifier of transformers, whose head is left behind.
        data: A dataset folder with the columns `text` and `label`.
        folder: Where the expert goes.
        rate: AdamW's learning rate at its height.
        seed: Seed of the head, the order of texts, and dropout.
        adapter: Train a LoRA adapter of rank 8 and the head, and save these alone.

    Returns:
        Rate, steps, and validation accuracy as a share, also of every check.
    """
    if (folder / SAID).is_file():
        said: dict[str, Any] = json.loads((folder / SAID).read_text(encoding="utf-8"))
        return said
    rows = {
        split: datasets.load_dataset("parquet", data_dir=str(data), split=split)
        for split in ("train", "validation")
    }
    names = rows["train"].features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(foundation, local_files_only=True)
    torch.manual_seed(seed)
    model = BertForSequenceClassification.from_pretrained(foundation, local_files_only=True)
    model.classifier = nn.Linear(model.config.hidden_size, len(names))
    model._init_weights(model.classifier)
    model.num_labels = model.config.num_labels = len(names)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: k for k, name in enumerate(names)}
    if adapter:
        kind = LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=16,
            target_modules=["query", "key", "value"],
            modules_to_save=["classifier"],
        )
        model = get_peft_model(model, kind)
    batches = {split: _Batches(rows[split], tokenizer) for split in rows}
    checks: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    for step in _steps(model, batches["train"], rate):
        if step % CHECKED == 0:
            accuracy = _accuracy(model, batches["validation"])
            if accuracy > max((check["accuracy"] for check in checks), default=-1.0):
                best = {key: value.clone() for key, value in model.state_dict().items()}
            checks.append({"step": step, "accuracy": accuracy})
            print(f"{folder.name}: {step} steps, {accuracy:.3f}", file=sys.stderr, flush=True)
    model.load_state_dict(best)
    model.save_pretrained(folder)
    if adapter:
        model.config.save_pretrained(folder)  # the names of the classes
    tokenizer.save_pretrained(folder)
    top = max(checks, key=lambda check: check["accuracy"])
    said = {"rate": rate, "steps": top["step"], "accuracy": top["accuracy"], "checks": checks}
    write_whole(folder / SAID, json.dumps(said, indent=1) + "\n")
    return said


def mixed() -> torch.autocast:
    """Multiply matrices in bfloat16, in two thirds of the time; parameters stay float32."""
    return torch.autocast("cpu", torch.bfloat16)


class _Batches:
    """Texts in batches, tokenised once."""

    def __init__(self, rows: Any, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        texts, self.labels = list(rows["text"]), torch.tensor(rows["label"][:])
        self.inputs = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)

    def draw(self) -> list[list[int]]:
        """Draw every text once, in batches of texts of similar length: little is padded."""
        order = torch.randperm(len(self.labels)).tolist()
        pools = [order[k : k + 8 * BATCH] for k in range(0, len(order), 8 * BATCH)]
        near = [k for pool in pools for k in sorted(pool, key=self.length)]
        found = [near[k : k + BATCH] for k in range(0, len(near) - BATCH + 1, BATCH)]
        return [found[k] for k in torch.randperm(len(found)).tolist()]

    def length(self, k: int) -> int:
        """Count a text's tokens."""
        return len(self.inputs["input_ids"][k])

    def of(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Pad some of them to the longest one."""
        parts: list[Mapping[str, Any]] = [
            {key: value[k] for key, value in self.inputs.items()} for k in chosen
        ]
        padded = self.tokenizer.pad(parts, return_tensors="pt")
        return {**padded, "labels": self.labels[list(chosen)]}


def _steps(model: nn.Module, batches: _Batches, rate: float) -> Iterator[int]:
    """Train, and yield the number of steps taken."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / WARM_UP, (STEPS - k) / (STEPS - WARM_UP))
    )
    drawn: list[list[int]] = []
    for step in range(1, STEPS + 1):
        drawn = drawn or batches.draw()
        chosen = drawn.pop()
        model.train()
        with mixed():
            loss = model(**batches.of(chosen)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield step


@torch.no_grad()
def _accuracy(model: nn.Module, batches: _Batches) -> float:
    """Measure accuracy, as a share."""
    model.eval()
    right = 0
    order = sorted(range(len(batches.labels)), key=batches.length)
    for start in range(0, len(order), 50):
        x = batches.of(order[start : start + 50])
        labels = x.pop("labels")
        with mixed():
            logits = model(**x).logits
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(batches.labels)

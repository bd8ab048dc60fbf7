"""Small real text classifiers with real tokenizers, made and saved by their own libraries."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from builders import perturb, randomise
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn

KINDS = ("bert", "distilbert", "roberta", "deberta-v2", "gpt2")
"""The families: WordPiece for the first two, byte-level BPE for RoBERTa and GPT-2, Unigram."""
WIDEST = 40
"""Tokens that the small networks have positions for."""

GOOD = ("bright", "warm", "kind", "clever", "quick", "gentle", "sunny", "honest", "brave", "merry")
BAD = ("dull", "cold", "cruel", "stupid", "slow", "harsh", "gloomy", "false", "timid", "sour")
THINGS = ("film", "book", "song", "meal", "room", "day", "story", "play", "teacher", "garden")


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Sentences of 3 to 15 words about things that are good (1) or bad (0), with their labels."""
    draw = torch.Generator().manual_seed(seed)

    def one_of(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=draw))]

    texts, labels = [], []
    for _ in range(count):
        label = int(torch.randint(2, (1,), generator=draw))
        parts = [
            f"the {one_of(THINGS)} was {one_of(GOOD if label else BAD)}"
            for _ in range(1 + int(torch.randint(3, (1,), generator=draw)))
        ]
        texts.append(" and ".join(parts))
        labels.append(label)
    return texts, labels


def words() -> list[str]:
    """All words of the sentences, the most frequent first."""
    counts = Counter(" ".join(sentences(200, seed=7)[0]).split())
    return sorted(counts, key=lambda word: (-counts[word], word))


@cache
def content(kind: str) -> str:
    """A tokenizer's content, the same in every process: only the training of BPE is repeatable."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set("".join(words())))
    if kind in ("bert", "distilbert"):
        pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words()[:60]]
        vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        raw.normalizer = normalizers.BertNormalizer(lowercase=True)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        raw.decoder = decoders.WordPiece()
    elif kind in ("roberta", "gpt2"):
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        special = special if kind == "roberta" else ["<|endoftext|>"]
        raw.train_from_iterator(
            sentences(200, seed=7)[0],
            trainers.BpeTrainer(
                vocab_size=400,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
        )
        if kind == "roberta":
            raw.post_processor = processors.RobertaProcessing(
                ("</s>", 2), ("<s>", 0), add_prefix_space=False
            )
    else:
        scores = dict.fromkeys(special, 0.0) | dict.fromkeys(("▁", *letters), -12.0)
        scores |= {f"\u2581{word}": -2.0 - i / 10 for i, word in enumerate(words()[:30])}
        raw = Tokenizer(models.Unigram(list(scores.items()), unk_id=1))
        raw.normalizer = normalizers.NFKC()
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.decoder = decoders.Metaspace()
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return str(raw.to_str())


CLASSES = {
    "bert": "BertTokenizerFast",
    "distilbert": "DistilBertTokenizerFast",
    "roberta": "RobertaTokenizerFast",
    "deberta-v2": "DebertaV2TokenizerFast",
    "gpt2": "GPT2TokenizerFast",
}
"""transformers' tokenizer of each family."""


def tokenizer(kind: str, **settings: Any) -> Any:
    """A tokenizer of a family, made from the sentences and wrapped by transformers' own class."""
    import transformers

    settings = {"model_max_length": WIDEST - 4, **settings}
    if kind == "gpt2":
        settings = {"pad_token": "<|endoftext|>", **settings}
    raw = Tokenizer.from_str(content(kind))
    return getattr(transformers, CLASSES[kind])(tokenizer_object=raw, **settings)


def text_model(kind: str, seed: int = 0, *, classes: int = 2, vocabulary: int = 400) -> nn.Module:
    """A small text classifier; seeds differ as experts do."""
    import transformers

    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": WIDEST,
        "num_labels": classes,
        "initializer_range": 0.3,
    }
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=vocabulary,
            dim=24,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            initializer_range=0.3,
            max_position_embeddings=WIDEST,
            num_labels=classes,
        )
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocabulary,
            n_embd=24,
            n_layer=2,
            n_head=2,
            n_positions=WIDEST,
            initializer_range=0.3,
            num_labels=classes,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    elif kind == "roberta":
        config = transformers.RobertaConfig(
            **sizes, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
        )
    elif kind == "deberta-v2":
        config = transformers.DebertaV2Config(
            **sizes,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            conv_kernel_size=3,
            position_biased_input=False,
        )
    else:
        config = transformers.BertConfig(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    randomise(model, 0, scale=0.3)
    perturb(model, torch.Generator().manual_seed(seed), 0.05)
    return model


def save_text(
    folder: Path,
    kind: str = "bert",
    seed: int = 0,
    *,
    classes: int = 2,
    names: Sequence[str] | None = None,
    **settings: Any,
) -> Path:
    """Write a small text classifier with its tokenizer and return its folder."""
    model: Any = text_model(kind, seed, classes=classes)
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    tokenizer(kind, **settings).save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0) -> datasets.Dataset:
    """The sentences as a dataset with the columns text and label."""
    said, labels = sentences(count, seed)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    return datasets.Dataset.from_dict({"text": said, "label": labels}, features=features)


def save_texts(folder: Path, train: int = 60, test: int = 30, seed: int = 0) -> Path:
    """Write sentences as a folder of parquet files with the splits train and test."""
    folder.mkdir(parents=True)
    texts(train, seed).to_parquet(folder / "train-00000-of-00001.parquet")
    texts(test, seed + 100).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def text_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for two experts in `folder`/one and /two on the sentences beside them."""
    return {
        "experts": [
            {"model": str(folder / "one"), "dataset": "first"},
            {"model": str(folder / "two"), "dataset": "second"},
        ],
        "datasets": {
            "first": {"path": str(folder / "first")},
            "second": {"path": str(folder / "second"), "max_length": 9},
        },
        "samples": {"per_expert": 6, "seed": 0},
        "lam": 0.01,
        "output": str(folder / "coded"),
        **changes,
    }


def make_text_world(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """Write two text experts, their sentences and a recipe; return the recipe's path."""
    for seed, (name, data) in enumerate({"one": "first", "two": "second"}.items()):
        save_text(folder / name, kind, seed, names=["bad", "good"])
        save_texts(folder / data, seed=seed)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(text_recipe(folder, **changes), sort_keys=False))
    return path

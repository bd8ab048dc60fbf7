"""Tokenise texts into an expert's inputs, with settings that can be compared."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from coin_hf.errors import InputError, boundary, shown
from coin_hf.experts.preprocessing import Preprocessing
from coin_hf.hub.layout import TOKENIZER_FILES, VOCABULARY_FILES
from coin_hf.networks.inputs import stack

Text: TypeAlias = str | Sequence[str]
"""A text, or a pair of texts."""
LONGEST = 100_000
"""Largest `model_max_length` that is one: tokenizers without a limit declare 10^30."""
LARGEST = 1 << 27
"""Bytes of a tokenizer's largest file: those of a million tokens take a quarter of it."""
WAY_OUT = "save the tokenizer it was fine-tuned with by `AutoTokenizer.save_pretrained`"


@dataclass(frozen=True, eq=False)
class TextPreprocessing:
    """An expert's own tokenizer, as its repository declares it."""

    settings: dict[str, Any]
    """Content, special tokens, greatest length, sides: equal settings mean equal tokens."""
    longest: int | None
    """Most tokens of a text: the tokenizer's limit and the network's positions; None if neither
    says."""
    processor: Any
    """The transformers tokenizer as it was loaded, to be saved with a network."""
    _tokenizer: Any
    """Its working copy: tokenising leaves traces of length and padding in a tokenizer."""

    def __call__(self, text: Text, max_length: int | None = None) -> dict[str, Tensor]:
        """Return the network's input for one text: the one way for samples, tests and users.

        Args:
            text: A text, or a pair of texts.
            max_length: Tokens that it is cut to, special tokens included; by default the most that
                tokenizer and network take.

        Returns:
            What the tokenizer gives (`input_ids`, `attention_mask`, perhaps `token_type_ids`), each
            of shape (T,), without padding.

        Raises:
            InputError: If it is neither a text nor a pair, or the tokenizer fails on it.
        """
        parts = [text] if isinstance(text, str) else list(text)
        if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"a text classifier takes a text or a pair of texts, got {type(text).__name__} of "
                f"{len(parts)}: give a string, or a tuple of two"
            )
        if self._tokenizer is None:
            raise InputError("this network has no tokenizer: give tensors of tokens")
        length = self.length(max_length)
        with boundary("a text cannot be tokenised", "check it, or leave it out"):
            found = self._tokenizer(
                *parts,
                truncation=True,
                max_length=length,
                return_attention_mask=True,
            )
        return {name: torch.tensor(value, dtype=torch.long) for name, value in found.items()}

    def length(self, asked: int | None = None) -> int:
        """Return the number of tokens that texts are cut to.

        Args:
            asked: The number that the recipe asks for, if any.

        Returns:
            That, or the most that tokenizer and network take.

        Raises:
            InputError: If it is above that, or neither says how many that is.
        """
        if asked is None and self.longest is None:
            raise InputError(
                "neither the tokenizer nor the network says how many tokens it takes: set "
                "`max_length` of the dataset"
            )
        if asked is not None and self.longest is not None and asked > self.longest:
            raise InputError(
                f"`max_length` is {asked}, but the experts take {self.longest} tokens: give at "
                "most that"
            )
        return int(asked or self.longest or 0)

    def padded(self, inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Batch inputs, padded to the longest one.

        Padding goes to the right, whatever side the tokenizer names: there it changes neither the
        positions of tokens nor which token comes first or last, so that every text is answered as
        it is alone.

        Args:
            inputs: At least one, each without batch axis.

        Returns:
            Tensors of shape (B, T); `attention_mask` is 0 at padding.
        """
        filled = {
            "input_ids": int(self.processor.pad_token_id),
            "token_type_ids": int(self.processor.pad_token_type_id),
        }
        return {
            name: nn.utils.rnn.pad_sequence(
                [each[name] for each in inputs],
                batch_first=True,
                padding_value=filled.get(name, 0),
            )
            for name in inputs[0]
        }


AnyPreprocessing: TypeAlias = Preprocessing | TextPreprocessing
"""What an expert is fed by: an image's transform, or a tokenizer."""


def preprocessed(preprocessing: AnyPreprocessing, x: Any) -> Any:
    """Preprocess one input, or batch several.

    Args:
        preprocessing: An expert's.
        x: An image or text, or a list of them.

    Returns:
        The network's input without batch axis; for a list a batch, texts padded to the longest.

    Raises:
        InputError: If the preprocessing fails on one.
    """
    if not isinstance(x, list):
        return preprocessing(x)
    if isinstance(preprocessing, TextPreprocessing):
        return preprocessing.padded([preprocessing(each) for each in x])
    return stack([preprocessing(each) for each in x])


def folder_tokenizer(folder: Path, name: str) -> Any:
    """Load the tokenizer of an expert's folder.

    Args:
        folder: The checkpoint.
        name: The expert's name, for messages.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        InputError: If there is none, or transformers' own code cannot load it.
    """
    from transformers import AutoTokenizer

    if not any((folder / file).is_file() for file in VOCABULARY_FILES):
        raise InputError(
            f"expert '{name}' has no tokenizer: its repository needs a tokenizer.json; {WAY_OUT}"
        )
    for file in TOKENIZER_FILES:
        if (folder / file).is_file() and (folder / file).stat().st_size > LARGEST:
            raise InputError(
                f"expert '{name}' has a {file} of more than {LARGEST >> 20} MiB, which no "
                f"vocabulary needs: {WAY_OUT}"
            )
    with boundary(f"expert '{name}' has no tokenizer that transformers can load", WAY_OUT):
        found: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        for key in ("local_files_only", "is_local"):  # how it was read is no part of what it is
            getattr(found, "init_kwargs", {}).pop(key, None)
    return found


def tokenizer_preprocessing(tokenizer: Any, model: Any, name: str) -> TextPreprocessing:
    """Describe a tokenizer and the lengths that its network takes.

    Args:
        tokenizer: A fast tokenizer of transformers; with None, no text can be tokenised.
        model: The network.
        name: The expert's name, for messages.

    Returns:
        The tokenizer as a preprocessing.

    Raises:
        InputError: If it is slow (in Python), pads nothing or has more tokens than the network, or
            the network's configuration lacks the token that it pads with.
    """
    positions = _positions(model)
    if tokenizer is None:
        return TextPreprocessing({}, positions, None, None)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"expert '{name}' has a tokenizer written in Python, whose content cannot be compared: "
            "save it as a fast tokenizer, with a tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"expert '{name}' has a tokenizer without a pad token, so that texts cannot be "
            "batched: set `tokenizer.pad_token = tokenizer.eos_token` and "
            "`model.config.pad_token_id = tokenizer.pad_token_id`, and save both again"
        )
    if model.config.pad_token_id is None:
        raise InputError(
            f"expert '{name}' has no `pad_token_id` in its config.json, by which its network finds "
            f"the end of a text: set it to {tokenizer.pad_token_id}, the tokenizer's pad token"
        )
    known = getattr(model.config, "vocab_size", None)
    if isinstance(known, int) and len(tokenizer) > known:
        raise InputError(
            f"expert '{name}' has a tokenizer of {len(tokenizer)} tokens, but its network knows "
            f"{known}: give the tokenizer it was fine-tuned with"
        )
    declared = tokenizer.model_max_length
    if not isinstance(declared, int | float):
        raise InputError(
            f"expert '{name}' has a tokenizer whose `model_max_length` is {shown(declared)}, no "
            "number: correct it in tokenizer_config.json"
        )
    limits = [int(n) for n in (declared, positions) if n is not None and 0 < n <= LONGEST]
    longest = min(limits, default=None)
    settings = {
        "tokenizer": _content(tokenizer),
        "special_tokens": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
        "max_length": longest,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "inputs": sorted(tokenizer.model_input_names),
    }
    return TextPreprocessing(settings, longest, tokenizer, copy.deepcopy(tokenizer))


def _content(tokenizer: Any) -> str:
    """Hash what a tokenizer does to a text, without how it was last asked to cut and pad."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    said = {key: value for key, value in said.items() if key not in ("truncation", "padding")}
    return "sha256:" + hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _positions(model: Any) -> int | None:
    """Return how many positions a network has.

    RoBERTa and its kin number positions from behind that of padding, and lose those before.
    """
    count = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return None
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            behind = module.padding_idx
            return count if behind is None else count - behind - 1
    return count

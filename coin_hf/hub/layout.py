"""The layout of a coded repository.

config.json  model.safetensors     the first coded model, in its library's own format, with its
                                   image processor or tokenizer
coded-1/     coded-2/ ...          the others, each a repository in that format
fisher/<expert>.safetensors        the experts' Fishers, if the recipe saves them
coin.json    result.json           what decoding needs; all measurements
README.md    nda.png  erasure.svg  the card, its figure, and the drawing of an erasure
handler.py   requirements.txt      on request: how Inference Endpoints serve one of the networks
"""

COIN_FILE, RESULT_FILE, CARD_FILE = "coin.json", "result.json", "README.md"
FIGURE = "nda.png"
"""The figure's file name in a coded repository."""
DRAWING = "erasure.svg"
"""The file name of the drawing of an erasure in a coded repository."""
HANDLER, REQUIREMENTS = "handler.py", "requirements.txt"
"""The files that Inference Endpoints read beside a network's; coin-hf never runs what they hold."""
FISHERS = "fisher"
"""The folder of the experts' Fishers in a coded repository."""

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spm.model",
                    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")  # fmt: skip
"""Files of a tokenizer, at least one of which holds its vocabulary."""
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip
"""Files of a tokenizer, as transformers writes and reads them."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a PEFT adapter."""
PROCESSOR = "preprocessor_config.json"
"""The file of a transformers image processor."""
BESIDE_FILES = (PROCESSOR, "model.safetensors.index.json", *TOKENIZER_FILES)
"""Files beside config.json and weights that transformers writes: the same in all coded models."""
CHECKPOINT_FILES = [
    "config.json",
    "model*.safetensors",
    *BESIDE_FILES,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    "README.md",
]
"""Files read from an expert's repository; no others are downloaded."""
CODED_FILES = [*CHECKPOINT_FILES, "*.json", "*.png", "*.svg", "coded-*/*.safetensors",
               *(f"coded-*/{name}" for name in VOCABULARY_FILES)]  # fmt: skip
"""Files read from a coded repository: all but the Fishers, which only re-coding needs."""
_NETWORK = ("config.json", "model*.safetensors", *BESIDE_FILES)
PUSHED_FILES = [
    *_NETWORK,
    *(f"coded-[0-9]*/{name}" for name in _NETWORK),
    f"{FISHERS}/*.safetensors",
    COIN_FILE,
    RESULT_FILE,
    CARD_FILE,
    FIGURE,
    DRAWING,
    HANDLER,
    REQUIREMENTS,
]
"""What a push publishes of a coded repository's folder: what coin-hf writes, and nothing else."""


def coded_folder(number: int) -> str:
    """Return the folder of a coded model in its repository.

    Args:
        number: Index of the coded model, from 0.

    Returns:
        A folder relative to the repository: `.` for the first, so that plain loaders find it.
    """
    return f"coded-{number}" if number else "."

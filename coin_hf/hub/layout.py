"""The layout of a coded repository.

config.json  model.safetensors     the first coded model, in its library's own format
coded-1/     coded-2/ ...          the others, each a repository in that format
fisher/<expert>.safetensors        the experts' Fishers, if the recipe saves them
coin.json    result.json           what decoding needs; all measurements
README.md    nda.png               the card and its figure
"""

COIN_FILE, RESULT_FILE, CARD_FILE = "coin.json", "result.json", "README.md"
FIGURE = "nda.png"
"""The figure's file name in a coded repository."""
FISHERS = "fisher"
"""The folder of the experts' Fishers in a coded repository."""

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a PEFT adapter."""
PROCESSOR = "preprocessor_config.json"
"""The file of a transformers image processor."""
CHECKPOINT_FILES = [
    "config.json",
    PROCESSOR,
    "model*.safetensors",
    "model.safetensors.index.json",
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    "README.md",
]
"""Files read from an expert's repository; no others are downloaded."""
CODED_FILES = [*CHECKPOINT_FILES, "*.json", "*.png", "coded-*/*.safetensors"]
"""Files read from a coded repository: all but the Fishers, which only re-coding needs."""
_NETWORK = ("config.json", "preprocessor_config.json", "model*.safetensors",
            "model.safetensors.index.json")  # fmt: skip
PUSHED_FILES = [
    *_NETWORK,
    *(f"coded-[0-9]*/{name}" for name in _NETWORK),
    f"{FISHERS}/*.safetensors",
    COIN_FILE,
    RESULT_FILE,
    CARD_FILE,
    FIGURE,
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

"""What lies where in a coded repository.

config.json  model.safetensors     the first coded model, as its own library reads it
coded-1/     coded-2/ ...          the others, each a repository of that form
fisher/<expert>.safetensors        the experts' Fishers, where the recipe asks for them
coin.json    result.json           what decoding needs; every number that was measured
README.md    nda.png               the card and its figure
"""

COIN_FILE, RESULT_FILE, CARD_FILE = "coin.json", "result.json", "README.md"
FIGURE = "nda.png"
"""The figure's file name in a coded repository."""
FISHERS = "fisher"
"""The folder of the experts' Fishers in a coded repository."""

CHECKPOINT_FILES = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "README.md",
]
"""What an expert's repository is read for; everything else stays on the Hub."""
CODED_FILES = [*CHECKPOINT_FILES, "*.json", "*.png", "coded-*/*.safetensors"]
"""What a coded repository is read for: all but the Fishers, which only re-coding needs."""


def coded_folder(number: int) -> str:
    """Return where a coded model lies in its repository.

    Args:
        number: Its number, from 0.

    Returns:
        A folder relative to the repository: `.` for the first, so that plain loaders find it.
    """
    return f"coded-{number}" if number else "."

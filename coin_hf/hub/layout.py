"""What lies where in a coded repository, and the names of what its records hold.

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

FORMAT = 1
"""Version of coin.json and result.json; a reader refuses one it does not know."""
COIN_KEYS = (
    "library",
    "coder",
    "betas",
    "lam",
    "experts",
    "datasets",
    "samples",
    "fisher",
    "evaluation",
)
SETTINGS = ("task_arithmetic", "regmean", "distillation")
"""Blocks of coders' settings; the one of the coder used is recorded."""
REFINING = ("refine", "augment")
"""Keys that are recorded where they had a part in a coded model."""
RESULT_KEYS = (*COIN_KEYS, "erasures", "mean_nda", "run")
"""What a reader of coin.json and of result.json relies on."""

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

OUTPUT_AVERAGE = "output average"
"""Control: the exact sum_i beta_i f_i in place of a coded model; NDA 100 by construction."""
NO_CODED_MODEL = "no coded model"
"""Control: the beta-weighted answers that came, for the missing one; fhat_i = f_j for N = 2."""


def coded_folder(number: int) -> str:
    """Return where a coded model lies in its repository.

    Args:
        number: Its number, from 0.

    Returns:
        A folder relative to the repository: `.` for the first, so that plain loaders find it.
    """
    return f"coded-{number}" if number else "."

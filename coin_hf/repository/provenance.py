"""Record the versions that a result depends on."""

import platform
from importlib.metadata import version

LIBRARIES = (
    "coin-hf",
    "torch",
    "timm",
    "transformers",
    "datasets",
    "accelerate",
    "safetensors",
    "huggingface-hub",
)
"""Packages whose versions are recorded."""


def environment() -> dict[str, str]:
    """Return the versions a result depends on, by package."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}

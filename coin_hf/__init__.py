"""Erasure-coded inference for Hugging Face models (COIN, arXiv:2409.01420)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from coin_hf.coders import fisher_average
    from coin_hf.ensemble import CodedEnsemble
    from coin_hf.erasure.code import ErasureCode
    from coin_hf.errors import InputError
    from coin_hf.experts.expert import Expert, load_expert
    from coin_hf.fisher import diagonal_fisher
    from coin_hf.pipeline import encode
    from coin_hf.recipe import Recipe

__all__ = [
    "CodedEnsemble",
    "ErasureCode",
    "Expert",
    "InputError",
    "Recipe",
    "diagonal_fisher",
    "encode",
    "fisher_average",
    "load_expert",
]

# Imported when first used: `coin-hf --help` and a recipe's check need no torch.
_HOME = {
    "CodedEnsemble": "ensemble",
    "ErasureCode": "erasure.code",
    "Expert": "experts.expert",
    "InputError": "errors",
    "Recipe": "recipe",
    "diagonal_fisher": "fisher",
    "encode": "pipeline",
    "fisher_average": "coders",
    "load_expert": "experts.expert",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'coin_hf' has no attribute '{name}'")
    return getattr(import_module(f"coin_hf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]

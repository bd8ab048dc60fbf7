"""Erasure-coded inference for Hugging Face models (COIN, arXiv:2409.01420)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from coin_hf.coders import (
        average,
        distill,
        fisher_average,
        gram_matrices,
        regmean,
        task_arithmetic,
        transposed_weights,
    )
    from coin_hf.comparison.compare import compare
    from coin_hf.comparison.files import save_comparison
    from coin_hf.ensemble import CodedEnsemble
    from coin_hf.erasure.code import ErasureCode
    from coin_hf.errors import InputError
    from coin_hf.experts.coded_model import build_coded
    from coin_hf.experts.expert import Expert, load_expert
    from coin_hf.experts.finetuning import freeze_batch_norm
    from coin_hf.fisher import diagonal_fisher
    from coin_hf.pipeline import encode, evaluate
    from coin_hf.recipe import Recipe
    from coin_hf.recoding.changes import Newcomer
    from coin_hf.recoding.expert_fisher import make_fisher, publish_fisher
    from coin_hf.recoding.recode import recode
    from coin_hf.recoding.tune_betas import tune_betas
    from coin_hf.refiners import refit_head, refit_layers
    from coin_hf.reports.comparison_table import comparison_table
    from coin_hf.reports.result import Result
    from coin_hf.repository.fisher_files import load_fisher, save_fisher
    from coin_hf.repository.folder import save_result
    from coin_hf.repository.push import push_folder

# Imported on first use: `coin-hf --help` and recipe validation need no torch.
_HOME = {
    # Encode, load, evaluate, compare.
    "Recipe": "recipe",
    "encode": "pipeline",
    "CodedEnsemble": "ensemble",
    "evaluate": "pipeline",
    "Result": "reports.result",
    "save_result": "repository.folder",
    "push_folder": "repository.push",
    "compare": "comparison.compare",
    "comparison_table": "reports.comparison_table",
    "save_comparison": "comparison.files",
    # Fishers and re-coding.
    "recode": "recoding.recode",
    "Newcomer": "recoding.changes",
    "tune_betas": "recoding.tune_betas",
    "make_fisher": "recoding.expert_fisher",
    "publish_fisher": "recoding.expert_fisher",
    # Building blocks for networks in memory.
    "Expert": "experts.expert",
    "load_expert": "experts.expert",
    "freeze_batch_norm": "experts.finetuning",
    "diagonal_fisher": "fisher",
    "save_fisher": "repository.fisher_files",
    "load_fisher": "repository.fisher_files",
    "fisher_average": "coders",
    "average": "coders",
    "task_arithmetic": "coders",
    "regmean": "coders",
    "gram_matrices": "coders",
    "transposed_weights": "coders",
    "distill": "coders",
    "refit_layers": "refiners",
    "refit_head": "refiners",
    "build_coded": "experts.coded_model",
    "ErasureCode": "erasure.code",
    "InputError": "errors",
}

__all__ = [
    "CodedEnsemble",
    "ErasureCode",
    "Expert",
    "InputError",
    "Newcomer",
    "Recipe",
    "Result",
    "average",
    "build_coded",
    "compare",
    "comparison_table",
    "diagonal_fisher",
    "distill",
    "encode",
    "evaluate",
    "fisher_average",
    "freeze_batch_norm",
    "gram_matrices",
    "load_expert",
    "load_fisher",
    "make_fisher",
    "publish_fisher",
    "push_folder",
    "recode",
    "refit_head",
    "refit_layers",
    "regmean",
    "save_comparison",
    "save_fisher",
    "save_result",
    "task_arithmetic",
    "transposed_weights",
    "tune_betas",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'coin_hf' has no attribute '{name}'")
    return getattr(import_module(f"coin_hf.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]

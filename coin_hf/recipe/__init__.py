"""The recipe: a YAML file, validated, frozen, with every default filled in."""

from coin_hf.recipe.recipe import Recipe

__all__ = ["Recipe"]

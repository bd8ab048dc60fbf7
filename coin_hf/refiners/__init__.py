"""Refiners: coded parameters improved in closed form, by least squares on unlabeled inputs."""

from coin_hf.refiners.head import find_head, refit_head
from coin_hf.refiners.layerwise import refit_layers

__all__ = ["find_head", "refit_head", "refit_layers"]

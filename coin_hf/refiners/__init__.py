"""Refiners: improve coded parameters in closed form, by least squares on unlabeled inputs."""

from coin_hf.refiners.head import find_head, refit_head
from coin_hf.refiners.layerwise import LayerRefits, refit_layers
from coin_hf.refiners.lockstep import Unsuitable, find_maps

__all__ = ["LayerRefits", "Unsuitable", "find_head", "find_maps", "refit_head", "refit_layers"]

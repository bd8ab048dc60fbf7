"""Refiners: coded parameters improved in closed form, by least squares on unlabeled inputs."""

from coin_hf.refiners.head import find_head, refit_head
from coin_hf.refiners.layerwise import refit_layers
from coin_hf.refiners.lockstep import Unsuitable, check_maps

__all__ = ["Unsuitable", "check_maps", "find_head", "refit_head", "refit_layers"]

"""What a recipe gets that says nothing of refining."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import recipe_dict
from torch import Tensor, nn

from coin_hf.encoding.context import RunContext
from coin_hf.encoding.defaults import settled
from coin_hf.encoding.inputs import draw, load_experts
from coin_hf.errors import InputError
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe

pytestmark = pytest.mark.slow


def after(world: Path, per_expert: int, **changes: Any) -> Recipe:
    """Settle a recipe on its own experts and samples."""
    said = {**recipe_dict(world), "samples": {"per_expert": per_expert}, **changes}
    recipe, run = Recipe.from_dict(said), RunContext()
    experts = load_experts(recipe, run)
    return settled(recipe, experts, draw(recipe, experts, run))


@pytest.mark.parametrize("coder", ["coin", "averaging"])
def test_a_hundred_images_are_refined_with_copies(world: Path, coder: str) -> None:
    found = after(world, 50, coder=coder)
    assert [block.step for block in found.refine or ()] == ["layerwise"]
    assert found.augment is not None
    assert found.augment.copies == 4


@pytest.mark.parametrize(
    ("per_expert", "changes"),
    [
        (49, {}),
        (50, {"coder": "regmean"}),
        (50, {"coder": "distillation"}),
        (50, {"refine": []}),
    ],
    ids=str,
)
def test_elsewhere_nothing_is_done(world: Path, per_expert: int, changes: Any) -> None:
    found = after(world, per_expert, **changes)
    assert found.refine == ()
    assert found.augment is None


def test_what_a_recipe_says_stays(world: Path) -> None:
    assert [b.step for b in after(world, 50, refine=["head"]).refine or ()] == ["head"]
    found = after(world, 50, refine="auto", augment={"copies": 1})
    assert [block.step for block in found.refine or ()] == ["layerwise"]
    assert found.augment is not None
    assert found.augment.copies == 1


def test_networks_without_maps_are_left_alone(world: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * self.scale

    recipe, run = (
        Recipe.from_dict({**recipe_dict(world), "samples": {"per_expert": 50}}),
        RunContext(),
    )
    experts = load_experts(recipe, run)
    drawn = draw(recipe, experts, run)
    other = [replace(each, model=Scaled().eval()) for each in experts]
    assert settled(recipe, other, drawn).refine == ()
    assert settled(recipe, experts, drawn).refine != ()


def test_in_a_comparison_a_coder_is_that_coder_alone(world: Path) -> None:
    said = {**recipe_dict(world), "compare": {"coders": ["coin", "averaging"]}}
    recipe = Recipe.from_dict(said)
    assert [recipe.with_coder(each).refine for each in recipe.contenders] == [(), ()]
    refined = Recipe.from_dict({**said, "refine": ["head"]})
    assert all(refined.with_coder(each).refine for each in refined.contenders)


def test_memory_is_for_layerwise(world: Path) -> None:
    with pytest.raises(InputError, match="`memory` limits the step `layerwise`, not `head`"):
        Recipe.from_dict({**recipe_dict(world), "refine": [{"step": "head", "memory": 2}]})


def test_what_was_done_is_recorded_and_runs_again_as_it_was(world: Path) -> None:
    for count, steps in ((50, ["layerwise"]), (20, [])):
        said = {**recipe_dict(world), "samples": {"per_expert": count}}
        ensemble = encode(Recipe.from_dict(said))
        recorded = ensemble.coin.recipe.refine
        assert recorded is not None
        assert [block.step for block in recorded] == steps
        assert [each.step for each in ensemble.result.refinements or ()] == steps

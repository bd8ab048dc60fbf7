"""Parameters are not filled at random where they will be loaded; all else is built as always."""

import timm
import torch
from torch import nn

from coin_hf.networks.building import Unfilled


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(300, 300)
        self.register_buffer("noise", torch.empty(300).normal_(), persistent=False)
        self.scale = nn.Parameter(torch.ones(3))


def test_only_parameters_stay_unfilled() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.empty(300).normal_()
        after = torch.get_rng_state()
        torch.manual_seed(0)
        with Unfilled():
            model = Mixed()
        assert torch.equal(torch.get_rng_state(), after)  # nothing was drawn for the linear map
    assert torch.equal(model.noise, expected)
    assert torch.equal(model.scale, torch.ones(3))


def test_a_network_that_is_loaded_is_the_network() -> None:
    for name in ("test_resnet", "test_vit", "test_efficientnet", "test_convnext"):
        given = timm.create_model(name, num_classes=5).eval()
        with Unfilled():
            model = timm.create_model(name, num_classes=5).eval()
        model.load_state_dict(given.state_dict())
        x = torch.randn(2, 3, *given.pretrained_cfg["input_size"][1:])
        with torch.no_grad():
            assert torch.equal(model(x), given(x))

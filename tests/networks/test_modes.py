"""A network comes back as it was, also after an exception."""

import pytest
import torch
from torch import nn

from coin_hf.networks.modes import evaluating, restored


def test_modes_and_flags_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            model.requires_grad_(True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with restored(model):
        model.eval().requires_grad_(False)
        assert torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags

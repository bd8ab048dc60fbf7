"""Gram matrices against loops over patches, found wherever a linear map is applied."""

import re

import pytest
import reference
import timm
import torch
import torch.nn.functional as F
from builders import timm_model
from timm.layers import Conv2dSame
from torch import Tensor, nn

from coin_hf.coders import gram_matrices


def inputs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Convolutions(nn.Module):
    """Every way of padding and striding, one after the other, and what has no Gram matrix."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.plain = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.strided = nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2))
            self.same = nn.Conv2d(5, 6, (2, 4), padding="same")  # torch warns of even kernels
            self.valid = nn.Conv2d(6, 4, 2, padding="valid")
            self.timm_same = Conv2dSame(4, 4, 3, stride=2)
            self.pointwise = nn.Conv2d(4, 6, 1, stride=2)
            self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.grouped = nn.Conv2d(6, 8, 1, groups=2)
            self.head = nn.Linear(8, 3)
        self.seen: dict[str, Tensor] = {}
        for name, module in self.named_children():
            module.register_forward_hook(
                lambda _, args, __, name=name: self.seen.update({name: args[0]})
            )

    def forward(self, x: Tensor) -> Tensor:
        for module in list(self.children())[:-1]:
            x = module(x)
        return self.head(x.mean((2, 3)))


def test_every_convolution_is_its_patches() -> None:
    model, x = Convolutions().double(), inputs(3, 3, 11, 12)
    found = gram_matrices(model, x, mode="conv")
    assert list(found) == [
        f"{name}.weight"
        for name in ("plain", "strided", "same", "valid", "timm_same", "pointwise", "head")
    ]
    with torch.no_grad():
        model(x)
    seen = model.seen
    padded = F.pad(seen["same"], (1, 2, 0, 1))  # torch: what cannot be halved goes to the end
    h, w = seen["timm_same"].shape[2:]
    rest = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (h, w)]
    timm_padded = F.pad(
        seen["timm_same"],
        (rest[1] // 2, rest[1] - rest[1] // 2, rest[0] // 2, rest[0] - rest[0] // 2),
    )
    cases = {
        "plain": (seen["plain"], (3, 3), (1, 1), (1, 1), (1, 1)),
        "strided": (seen["strided"], (3, 2), (2, 1), (0, 1), (1, 2)),
        "same": (padded, (2, 4), (1, 1), (0, 0), (1, 1)),
        "valid": (seen["valid"], (2, 2), (1, 1), (0, 0), (1, 1)),
        "timm_same": (timm_padded, (3, 3), (2, 2), (0, 0), (1, 1)),
        "pointwise": (seen["pointwise"], (1, 1), (2, 2), (0, 0), (1, 1)),
    }
    for name, (images, *settings) in cases.items():
        rows = [row for image in images for row in reference.im2col(image, *settings)]
        expected = reference.gram(rows, len(x))
        torch.testing.assert_close(found[f"{name}.weight"], expected, msg=name)
    expected = reference.gram(seen["head"].tolist(), len(x))
    torch.testing.assert_close(found["head.weight"], expected)


def test_linear_mode_takes_fully_connected_layers_alone() -> None:
    assert list(gram_matrices(Convolutions().double(), inputs(2, 3, 11, 12))) == ["head.weight"]


def test_tokens_count_as_inputs_and_the_mean_is_over_samples() -> None:
    model = timm_model(architecture="test_vit", img_size=32).double()
    x = inputs(3, 3, 32, 32)
    found = gram_matrices(model, x)
    seen: list[Tensor] = []
    model.get_submodule("blocks.0.attn.qkv").register_forward_hook(
        lambda _, args, __: seen.append(args[0])
    )
    model(x)
    rows = seen[0].flatten(0, 1)
    assert len(rows) > len(x)
    torch.testing.assert_close(found["blocks.0.attn.qkv.weight"], rows.T @ rows / len(x))


def test_a_map_that_is_used_twice_adds_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.map(self.map(x))

    model, x = Twice(), inputs(5, 4)
    inner = model.map(x).detach()
    expected = (x.T @ x + inner.T @ inner) / 5
    torch.testing.assert_close(gram_matrices(model, x)["map.weight"], expected)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model, x = timm_model().double(), inputs(5, 3, 32, 32)
    one = gram_matrices(model, x, mode="conv", batch_size=100)
    other = gram_matrices(model, x, mode="conv", batch_size=batch_size)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-12)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = timm_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = gram_matrices(model, inputs(2, 3, 32, 32).float(), mode="conv")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    second = gram_matrices(model.eval(), inputs(2, 3, 32, 32).float(), mode="conv")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_half_precision_is_accumulated_in_float32() -> None:
    model, x = nn.Linear(3, 2).bfloat16(), inputs(600, 3)
    found = gram_matrices(model, x)["weight"]
    assert found.dtype == torch.float32
    rows = x.bfloat16().double()
    torch.testing.assert_close(found.double(), rows.T @ rows / 600, rtol=1e-5, atol=1e-6)


def test_a_network_without_linear_layers_is_refused() -> None:
    model = timm.create_model(
        "resnetv2_50", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), stem_chs=8, num_classes=4
    )  # its head is a convolution
    x = inputs(1, 3, 32, 32).float()
    message = "RegMean in mode 'linear' finds no linear map in ResNetV2: set regmean.mode to conv"
    with pytest.raises(ValueError, match=re.escape(message)):
        gram_matrices(model, x)
    assert "head.fc.weight" in gram_matrices(model, x, mode="conv")
    with pytest.raises(ValueError, match="RegMean in mode 'conv' finds no linear map in LayerNorm"):
        gram_matrices(nn.LayerNorm(3), inputs(1, 3).float(), mode="conv")

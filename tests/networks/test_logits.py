from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from coin_hf.networks.inputs import to_device
from coin_hf.networks.logits import call, logits_of


class Returns(nn.Module):
    """A network that returns what it is told, whatever comes in."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.output = output

    def forward(self, x: Any) -> Any:
        return self.output


class Keywords(nn.Module):
    def forward(self, pixels: Tensor, *, scale: Tensor) -> Tensor:
        return pixels * scale


def test_a_tensor_and_an_output_with_logits() -> None:
    logits = torch.randn(2, 5)
    assert call(Returns(logits), None) is logits
    assert call(Returns(ImageClassifierOutput(logits=logits)), None) is logits


@pytest.mark.parametrize("kind", [dict, UserDict])  # transformers' tokenizers return the latter
def test_a_mapping_gives_keyword_arguments(kind: type) -> None:
    inputs = kind(pixels=torch.ones(2, 3), scale=torch.tensor(2.0))
    assert call(Keywords(), inputs).tolist() == [[2.0] * 3] * 2
    moved = to_device(inputs, "meta")
    assert {name: value.device.type for name, value in moved.items()} == {
        "pixels": "meta",
        "scale": "meta",
    }


@pytest.mark.parametrize("output", [(torch.zeros(2, 5),), ImageClassifierOutput(), "logits", None])
def test_no_logits(output: Any) -> None:
    message = (
        f"Returns returned {type(output).__name__}: expected a tensor of logits or an output with "
        "`.logits`; use a classification model"
    )
    with pytest.raises(TypeError, match=f"^{message}$"):
        call(Returns(output), None)


@pytest.mark.parametrize("shape", [(2,), (2, 5, 7), (2, 8, 4, 4)])
def test_logits_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, classes\)") as caught:
        call(Returns(torch.zeros(shape)), None)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_logits_come_in_order_whatever_the_batch(batch_size: int) -> None:
    model = nn.Linear(4, 3).double()
    inputs = torch.randn(20, 4, dtype=torch.float64)
    logits = logits_of(model, inputs, batch_size=batch_size)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model(inputs).detach(), rtol=0, atol=1e-14)

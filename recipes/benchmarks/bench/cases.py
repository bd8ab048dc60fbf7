"""What is measured: a network, the number of classes K, the number of samples P."""

from dataclasses import dataclass, field
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

EXACT_CLASSES = 64
"""K up to which all logits are taken."""
PROBES = 4
"""m of the probe estimator, which is measured above."""


@dataclass(frozen=True)
class Network:
    """A timm architecture at one image size."""

    architecture: str
    size: int
    """Pixels of a side."""
    chunk: int
    """Samples at once of the forward pass and of the bound."""
    peer_chunk: int
    """Samples at once of the peers, which hold K gradients of activations and P of weights."""
    options: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    "resnet50-32": Network("resnet50", 32, 32, 8),
    "resnet50-224": Network("resnet50", 224, 8, 2),
    "vit_tiny-32": Network(
        "vit_tiny_patch16_224", 32, 32, 8, {"img_size": 32, "patch_size": 4}
    ),  # 65 tokens
    "vit_tiny-224": Network("vit_tiny_patch16_224", 224, 8, 2),
    "vit_small-224": Network("vit_small_patch16_224", 224, 8, 2),
    "vit_base-224": Network("vit_base_patch16_224", 224, 8, 2),
}


@dataclass(frozen=True)
class Case:
    """One row group of the table."""

    network: str
    """A key of `NETWORKS`."""
    classes: int
    """K."""
    samples: int
    """P."""

    @property
    def key(self) -> str:
        """Its name in tables and results."""
        return f"{self.network}, K = {self.classes}, P = {self.samples}"

    @property
    def spec(self) -> Network:
        """The network."""
        return NETWORKS[self.network]

    @property
    def estimator(self) -> Literal["exact", "probe"]:
        """`exact`, or `probe` where K is large."""
        return "exact" if self.classes <= EXACT_CLASSES else "probe"

    @property
    def cotangents(self) -> int:
        """M, the backward passes of a sample: K, or the probes."""
        return self.classes if self.estimator == "exact" else PROBES

    def model(self, device: str = "cpu") -> nn.Module:
        """Build the network with random weights, the same every time, in eval mode."""
        torch.manual_seed(0)
        model = timm.create_model(
            self.spec.architecture, num_classes=self.classes, **self.spec.options
        )
        return randomise_norms(model).eval().to(device)

    def inputs(self, samples: int, device: str = "cpu") -> Tensor:
        """Draw samples, shape (P, 3, size, size)."""
        generator = torch.Generator().manual_seed(1)
        shape = (samples, 3, self.spec.size, self.spec.size)
        return torch.randn(shape, generator=generator).to(device)


@torch.no_grad()
def randomise_norms(model: nn.Module) -> nn.Module:
    """Move normalisation layers off their start.

    timm starts the last BatchNorm of a residual branch at zero, which hides errors behind it.
    """
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(1.0, 3.0)
    return model

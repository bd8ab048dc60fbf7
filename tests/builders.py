"""Small real experts and datasets, written as their own libraries write them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
import yaml
from PIL.Image import fromarray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from coin_hf.experts.preprocessing import timm_preprocessing

NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
SIZED = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 1.0, **NORMALISATION}


def randomise(model: nn.Module, seed: int, scale: float = 0.3) -> nn.Module:
    """Move every parameter and statistic away off its start: zeros and ones hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        perturb(model, generator, scale)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator).to(buffer)
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=generator).to(buffer)
    return model.eval()


@torch.no_grad()
def perturb(model: nn.Module, generator: torch.Generator, scale: float) -> None:
    """Add noise of `scale` times its own spread to every parameter."""
    for parameter in model.parameters():
        spread = scale * (float(parameter.std()) if parameter.numel() > 1 else 1.0) + scale / 10
        parameter += spread * torch.randn(parameter.shape, generator=generator).to(parameter)


def timm_model(seed: int = 0, architecture: str = "test_resnet", **model_args: Any) -> nn.Module:
    """A small timm network; seeds differ as experts do, in all parameters but no statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = timm.create_model(architecture, **{"num_classes": 10, **model_args})
    randomise(model, 0)
    perturb(model, torch.Generator().manual_seed(seed), 0.02)
    return model


@torch.no_grad()
def fit_classifier(model: nn.Module, data: datasets.Dataset, labels: Sequence[int]) -> None:
    """Fit a timm network's classifier to some of the digits, by least squares: a quick expert."""
    preprocess = timm_preprocessing({**model.pretrained_cfg, **SIZED}, channels=3)
    rows = [row for row in data if row["label"] in labels]
    features = model.forward_head(
        model.forward_features(torch.stack([preprocess(row["image"]) for row in rows])),
        pre_logits=True,
    )
    targets = nn.functional.one_hot(torch.tensor([row["label"] for row in rows]), 10).float()
    scale = 0.1 * float(features.square().mean()) * len(features) / features.shape[1]
    gram = features.T @ features + scale * torch.eye(features.shape[1])
    head = model.get_classifier()
    head.weight.copy_(torch.linalg.solve(gram, features.T @ targets).T)
    head.bias.zero_()


def save_timm(
    folder: Path,
    model: nn.Module,
    *,
    architecture: str = "test_resnet",
    size: int = 32,
    label_names: Sequence[str] | None = None,
    license: str | None = None,
    model_args: dict[str, Any] | None = None,
    **pretrained_cfg: Any,
) -> Path:
    """Write a network as a timm repository and return its folder."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "pretrained_cfg": {
            **SIZED,
            "input_size": [3, size, size],
            "num_classes": model.num_classes,
            **pretrained_cfg,
        },
    }
    if model_args:
        config["model_args"] = model_args
    if label_names is not None:
        config["label_names"] = list(label_names)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    if license is not None:
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n# expert\n")
    return folder


def save_transformers(folder: Path, seed: int = 0, *, classes: int = 10, size: int = 32) -> Path:
    """Write a small ViT as a transformers repository and return its folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=size,
        patch_size=8,
        num_labels=classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = ViTForImageClassification(config)
    randomise(model, seed, scale=0.05).save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "num_labels": 10,
}  # fmt: skip


def families() -> dict[str, Callable[[], Any]]:
    """Small networks of eight families, each as transformers builds it."""
    import transformers as t

    patches = {"image_size": 32, "patch_size": 8}
    stages = {"depths": [1, 1], "num_labels": 10}
    return {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**SMALL, **patches)),
        "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**SMALL, **patches)),
        "beit": lambda: t.BeitForImageClassification(t.BeitConfig(**SMALL, **patches)),
        "swin": lambda: t.SwinForImageClassification(
            t.SwinConfig(**stages, image_size=32, embed_dim=16, num_heads=[2, 2], window_size=4)
        ),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(**stages, embedding_size=16, hidden_sizes=[16, 32])
        ),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(**stages, num_stages=2, hidden_sizes=[16, 32])
        ),
        "mobilenet_v2": lambda: t.MobileNetV2ForImageClassification(
            t.MobileNetV2Config(num_labels=10, depth_multiplier=0.25, image_size=32)
        ),
        "dinov2": lambda: t.Dinov2ForImageClassification(
            t.Dinov2Config(
                **{k: v for k, v in SMALL.items() if k != "intermediate_size"}, **patches
            )
        ),
    }


def save_adapter(base: Path, folder: Path, seed: int = 0) -> Path:
    """Write a LoRA adapter of a small ViT, with a classifier of its own, as peft does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageClassification

    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=["classifier"]
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        adapted = get_peft_model(AutoModelForImageClassification.from_pretrained(base), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    return folder


def digits(rows: slice = slice(None)) -> datasets.Dataset:
    """Real handwritten digits: 8x8 grayscale images and their class."""
    data = load_digits()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
    )
    images = [fromarray((pixels * 255 / 16).astype(np.uint8)) for pixels in data.images[rows]]
    labels = [int(label) for label in data.target[rows]]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def save_digits(folder: Path, train: int = 200, test: int = 100) -> Path:
    """Write digits as a folder of parquet files with the splits train and test."""
    folder.mkdir(parents=True)
    digits(slice(0, train)).to_parquet(folder / "train-00000-of-00001.parquet")
    digits(slice(train, train + test)).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def recipe_dict(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for two experts in `folder`/low and /high on the digits in `folder`/digits.

    Fishers are exact unless `fisher` says otherwise: with ten classes they would be estimated.
    """
    fisher = {"estimator": "exact", **changes.pop("fisher", {})}
    return {
        "experts": [
            {"model": str(folder / "low"), "dataset": "low"},
            {"model": str(folder / "high"), "dataset": "high"},
        ],
        "datasets": {
            "low": {"path": str(folder / "digits"), "labels": [0, 1, 2, 3, 4]},
            "high": {"path": str(folder / "digits"), "labels": [5, 6, 7, 8, 9]},
        },
        "samples": {"per_expert": 8, "seed": 0},
        "lam": 0.01,
        "fisher": fisher,
        "output": str(folder / "coded"),
        **changes,
    }


def make_world(folder: Path, **changes: Any) -> Path:
    """Write two timm experts, their digits and a recipe; return the recipe's path."""
    save_digits(folder / "digits")
    for seed, (name, labels) in enumerate({"low": range(5), "high": range(5, 10)}.items()):
        model = timm_model(seed)
        fit_classifier(model, digits(slice(0, 200)), labels)
        save_timm(folder / name, model)
    return write_recipe(folder, **changes)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write the recipe of `recipe_dict` and return its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_dict(folder, **changes), sort_keys=False))
    return path


def plain_result(**changes: Any) -> dict[str, Any]:
    """The content of a result.json of which only the changes matter."""
    return {
        "format": 1,
        "library": "timm",
        "coder": "coin",
        "betas": [0.5, 0.5],
        "lam": 0.1,
        "architecture": "test_resnet",
        "num_classes": 10,
        "choice": None,
        "experts": [
            {
                "model": f"./{name}",
                "dataset": "pets",
                "revision": "sha256:0",
                "name": name,
                "library": "timm",
                "license": None,
            }
            for name in ("cats", "dogs")
        ],
        "datasets": {"pets": {"path": "./pets"}},
        "samples": {"per_expert": 2, "count": 4},
        "fisher": {"estimator": "exact"},
        "evaluation": {},
        "erasures": [],
        "mean_nda": {},
        "run": {"device": "cpu", "processes": 1, "seconds": {}, "versions": {}},
        **changes,
    }


def save_sliced(folder: Path, labels: Sequence[int], seed: int = 0, **settings: Any) -> Path:
    """Write an expert for some of the digits, in that order, and return its folder.

    Its head is rows of a 10-class one; `label_names` are by default the digits' names.
    """
    model: Any = timm_model(seed)
    fit_classifier(model, digits(slice(0, 200)), labels)
    rows = torch.tensor(labels)
    head = nn.Linear(model.fc.in_features, len(labels))
    with torch.no_grad():
        head.weight.copy_(model.fc.weight[rows])
        head.bias.copy_(model.fc.bias[rows])
    model.fc, model.num_classes = head, len(labels)
    names = settings.pop("label_names", [str(label) for label in labels])
    return save_timm(folder, model, label_names=names, **settings)

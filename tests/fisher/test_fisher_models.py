"""Whole architectures of timm and transformers: the engine equals loops over samples and logits."""

from typing import Any

import pytest
import timm
import torch
import transformers
from builders import randomise
from fisher_plans import generic, tried
from reference import fisher, fisher_error
from torch import Tensor, nn

from coin_hf.fisher import diagonal_fisher

pytestmark = pytest.mark.slow

K, P = 3, 3

NARROW = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
WINDOWS = {
    "img_size": 32,
    "window_size": 4,
    "depths": (2, 2),
    "embed_dim": 12,
    "num_heads": (2, 4),
}

TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": (8, 16, 16, 32)},
    "resnet50": {"layers": (2, 1, 1, 1), "channels": (8, 16, 16, 32)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (32, 32, 64, 64)},
    "regnetx_002": {},
    "densenet121": {"block_config": (1, 2, 1, 1)},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "tf_efficientnet_lite0": {},
    "convnext_atto": STAGES,
    "convnext_atto_ols": STAGES,
    "convnextv2_atto": STAGES,
    "vit_tiny_patch16_224": NARROW,
    "vit_base_patch16_clip_224": NARROW,
    "deit_tiny_distilled_patch16_224": NARROW,
    "deit3_small_patch16_224": NARROW,
    "vit_small_patch14_dinov2": NARROW,
    "beit_base_patch16_224": NARROW,
    "cait_xxs24_224": NARROW,
    "eva02_tiny_patch14_224": NARROW,
    "swin_tiny_patch4_window7_224": WINDOWS,
    "swin_s3_tiny_224": {**WINDOWS, "window_size": (4, 4)},
    "swinv2_tiny_window8_256": WINDOWS,
    "mixer_s32_224": {"img_size": 32},
    "resmlp_12_224": {"img_size": 32},
    "gmlp_ti16_224": {"img_size": 32},
    "poolformer_s12": {},
    "test_resnet": {},
    "test_efficientnet": {},
    "test_byobnet": {},
    "test_convnext": {},
    "test_convnext2": {},
    "test_convnext3": {},
    "test_mambaout": {},
    "test_vit": {},
    "test_vit2": {},
    "test_vit4": {},
}
COPIES: dict[str, dict[str, Any]] = {
    "xcit_nano_12_p8_224": {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2},
    "levit_128s": {"img_size": 64, "depth": (1, 1, 1)},
}


def timm_network(architecture: str, arguments: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=K, **arguments)
    size = arguments.get("img_size", 32)
    generator = torch.Generator().manual_seed(1)
    return randomise(model, 0).double(), torch.randn(P, 3, size, size, generator=generator).double()


def assert_exact(model: nn.Module, inputs: Any, *, copies: int = 1) -> None:
    """Equal to the loops at the default batch size and at one that does not divide P."""
    expected = fisher(model, inputs, copies=copies)
    for batch_size in (None, 2):
        found = diagonal_fisher(model, inputs, batch_size=batch_size)
        assert fisher_error(found, expected) <= 1e-10


def assert_by_rules(model: nn.Module, inputs: Any) -> None:
    """One batched backward pass a chunk, and not one parameter by the slow way."""
    plan = tried(model, inputs)
    assert list(plan.generic) == []
    assert plan.batched


@pytest.mark.parametrize("architecture", TIMM)
def test_timm(architecture: str) -> None:
    model, inputs = timm_network(architecture, TIMM[architecture])
    assert_exact(model, inputs)
    assert_by_rules(model, inputs)


@pytest.mark.parametrize("architecture", COPIES)
def test_timm_where_torchs_own_batch_norm_is_wrong(architecture: str) -> None:
    # See test_fisher_rules.py, test_batch_norm_where_torchs_own_is_wrong.
    model, inputs = timm_network(architecture, COPIES[architecture])
    assert_exact(model, inputs, copies=2)
    assert_by_rules(model, inputs)


def test_standardised_weights_go_the_generic_way_and_nothing_else() -> None:
    model, inputs = timm_network("test_nfnet", {})
    assert_exact(model, inputs)
    standardised = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if type(module).__name__.startswith("ScaledStdConv2d")
        for parameter in ("weight", "gain")
    }
    assert len(standardised) > 20
    assert set(generic(model, inputs)) == standardised


WIDTH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": K,
}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4}
TEXT: dict[str, Any] = {"vocab_size": 30, "max_position_embeddings": 20}
DEPTHS: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [4, 6, 8, 12], "num_labels": K}

IMAGES: dict[str, tuple[Any, Any, int]] = {
    "ViT": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**WIDTH, **IMAGE),
        16,
    ),
    "DeiT": (
        transformers.DeiTForImageClassification,
        transformers.DeiTConfig(**WIDTH, **IMAGE),
        16,
    ),
    "BEiT": (
        transformers.BeitForImageClassification,
        transformers.BeitConfig(**WIDTH, **IMAGE, use_relative_position_bias=True),
        16,
    ),
    "DINOv2": (
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config(**WIDTH, image_size=24, patch_size=4),
        16,  # its positions are resampled
    ),
    "ConvNeXt": (
        transformers.ConvNextForImageClassification,
        transformers.ConvNextConfig(**DEPTHS),
        32,
    ),
    "ConvNeXt V2": (
        transformers.ConvNextV2ForImageClassification,
        transformers.ConvNextV2Config(**DEPTHS),
        32,
    ),
    "ResNet": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(**DEPTHS, embedding_size=4),
        32,
    ),
    "Swin": (
        transformers.SwinForImageClassification,
        transformers.SwinConfig(
            image_size=32,
            patch_size=2,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[1, 2],
            window_size=4,
            num_labels=K,
        ),
        32,
    ),
}

TEXTS: dict[str, tuple[Any, Any]] = {
    "BERT": (transformers.BertForSequenceClassification, transformers.BertConfig(**WIDTH, **TEXT)),
    "DistilBERT": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(
            **TEXT, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=K
        ),
    ),
    "RoBERTa": (
        transformers.RobertaForSequenceClassification,
        transformers.RobertaConfig(**WIDTH, **TEXT, pad_token_id=1),
    ),
    "ELECTRA": (
        transformers.ElectraForSequenceClassification,
        transformers.ElectraConfig(**WIDTH, **TEXT, embedding_size=8),
    ),
    "Llama": (
        transformers.LlamaForSequenceClassification,
        transformers.LlamaConfig(**WIDTH, **TEXT, num_key_value_heads=1, pad_token_id=0),
    ),
    "Qwen2": (
        transformers.Qwen2ForSequenceClassification,
        transformers.Qwen2Config(**WIDTH, **TEXT, num_key_value_heads=1, pad_token_id=0),
    ),
    "GPT-2": (
        transformers.GPT2ForSequenceClassification,
        transformers.GPT2Config(
            vocab_size=30,
            n_positions=20,
            n_embd=16,
            n_layer=2,
            n_head=2,
            num_labels=K,
            pad_token_id=0,
        ),
    ),
    "ALBERT": (
        transformers.AlbertForSequenceClassification,
        transformers.AlbertConfig(**WIDTH, **TEXT, embedding_size=8),
    ),
}


def network(kind: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(kind(config), 0).double()


@pytest.mark.parametrize("name", IMAGES)
def test_image_classifiers_of_transformers(name: str) -> None:
    kind, config, size = IMAGES[name]
    model = network(kind, config)
    inputs = torch.randn(P, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    assert_exact(model, inputs)
    assert_by_rules(model, inputs)


def text() -> dict[str, Tensor]:
    """Sentences of different lengths, tokens repeated."""
    ids = torch.randint(3, 30, (P, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, :4], ids[2, 6:], mask[2, 6:] = 5, 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", TEXTS)
def test_text_classifiers_of_transformers(name: str) -> None:
    model = network(*TEXTS[name])
    assert_exact(model, text())
    match name:
        case "ALBERT":  # its layers share their parameters
            assert all("albert_layers" in parameter for parameter in generic(model, text()))
        case _:
            assert_by_rules(model, text())


def test_what_a_tokenizer_returns() -> None:
    model = network(*TEXTS["BERT"])
    expected = diagonal_fisher(model, text())
    found = diagonal_fisher(model, transformers.BatchEncoding(text()))
    assert fisher_error(found, expected) == 0

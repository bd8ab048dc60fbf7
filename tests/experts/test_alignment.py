import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import save_timm, save_transformers, timm_model

from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment, differing_statistics
from coin_hf.experts.expert import Expert, load_expert


def load(folder: Path, seed: int = 0, **settings: Any) -> Expert:
    """A timm expert named as its folder."""
    arguments = settings.pop("model_args", {})
    model = timm_model(seed, num_classes=settings.pop("num_classes", 10), **arguments)
    return load_expert(str(save_timm(folder, model, **settings, model_args=arguments)))


def refused(*experts: Expert) -> list[str]:
    """The differences listed."""
    with pytest.raises(InputError) as caught:
        check_alignment(experts)
    head, *lines, way_out = str(caught.value).split("\n")
    assert head == "the experts cannot be coded together, they differ in:"
    assert (
        way_out
        == "use experts fine-tuned from one foundation, with one head size and preprocessing"
    )
    return [line.removeprefix("  - ") for line in lines]


def test_experts_of_one_foundation_are_aligned(tmp_path: Path) -> None:
    check_alignment([load(tmp_path / f"e{seed}", seed) for seed in range(3)])


def test_so_are_those_of_transformers(tmp_path: Path) -> None:
    folders = [save_transformers(tmp_path / f"e{seed}", seed) for seed in range(2)]
    check_alignment([load_expert(str(folder)) for folder in folders])


def test_names_of_classes_and_experts_may_differ(tmp_path: Path) -> None:
    names = [f"digit {i}" for i in range(10)]
    check_alignment([load(tmp_path / "a"), load(tmp_path / "b", 1, label_names=names)])


def test_regularisation_may_differ(tmp_path: Path) -> None:
    other = load(tmp_path / "b", 1, model_args={"drop_path_rate": 0.1})
    check_alignment([load(tmp_path / "a"), other])


def test_what_is_left_to_the_default_equals_what_declares_it(tmp_path: Path) -> None:
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    declared = load(tmp_path / "declared", **imagenet)
    (tmp_path / "default").mkdir()
    for file in (tmp_path / "declared").iterdir():
        text = file.read_bytes()
        if file.suffix == ".json":
            text = text.replace(
                b'"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],', b""
            )
            assert b"mean" not in text
        (tmp_path / "default" / file.name).write_bytes(text)
    check_alignment([declared, load_expert(str(tmp_path / "default"))])


def test_other_classes(tmp_path: Path) -> None:
    assert refused(load(tmp_path / "ten"), load(tmp_path / "five", num_classes=5)) == [
        "classes: 'ten' has 10, 'five' has 5",
        "parameters: 'fc.weight' is (10, 96) float32 in 'ten', (5, 96) float32 in 'five', "
        "'fc.bias' is (10,) float32 in 'ten', (5,) float32 in 'five'",
    ]


def test_other_preprocessing(tmp_path: Path) -> None:
    other = load(tmp_path / "b", mean=[0.4, 0.5, 0.5], interpolation="bilinear", size=64)
    assert refused(load(tmp_path / "a"), other) == [
        "preprocessing, input_size: 'a' has [3, 32, 32], 'b' has [3, 64, 64]",
        "preprocessing, interpolation: 'a' has bicubic, 'b' has bilinear",
        "preprocessing, mean: 'a' has [0.5, 0.5, 0.5], 'b' has [0.4, 0.5, 0.5]",
    ]


def test_other_dtype(tmp_path: Path) -> None:
    half = save_timm(tmp_path / "half", timm_model(1).half())
    (line,) = refused(load(tmp_path / "a"), load_expert(str(half)))
    assert "'fc.bias' is (10,) float32 in 'a', (10,) float16 in 'half'" in line
    assert line.count(" float16 in 'half'") > 10, "where architectures agree, all are listed"


def test_other_architecture(tmp_path: Path) -> None:
    model = timm_model(0, "test_convnext")
    other = load_expert(str(save_timm(tmp_path / "b", model, architecture="test_convnext")))
    lines = refused(load(tmp_path / "a"), other)
    assert lines[0] == "architecture, architecture: 'a' has test_resnet, 'b' has test_convnext"
    assert lines[1].startswith("parameters: only 'a', not 'b', has 'conv1.0.weight', ")
    assert lines[1].endswith(" more")
    assert lines[2].startswith("parameters: only 'b', not 'a', has ")
    assert len(lines[1]) < 400


def test_other_library(tmp_path: Path) -> None:
    vit = load_expert(str(save_transformers(tmp_path / "vit")))
    assert refused(load(tmp_path / "a"), vit) == ["library: 'a' is timm, 'vit' is transformers"]


def test_every_expert_is_compared(tmp_path: Path) -> None:
    experts = [load(tmp_path / "a"), load(tmp_path / "b", 1), load(tmp_path / "c", crop_pct=0.9)]
    assert refused(*experts) == ["preprocessing, crop_pct: 'a' has 1.0, 'c' has 0.9"]
    assert refused(experts[2], *experts[:2]) == [
        "preprocessing, crop_pct: 'c' has 0.9, 'a' has 1.0",
        "preprocessing, crop_pct: 'c' has 0.9, 'b' has 1.0",
    ]


def test_activation_of_a_transformers_expert(tmp_path: Path) -> None:
    folders = [save_transformers(tmp_path / f"e{seed}", seed) for seed in range(2)]
    config = folders[1] / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    assert refused(*(load_expert(str(folder)) for folder in folders)) == [
        "architecture, hidden_act: 'e0' has gelu, 'e1' has relu"
    ]


def test_differing_statistics_are_named(tmp_path: Path) -> None:
    a, b = load(tmp_path / "a"), load(tmp_path / "b", 1)
    assert differing_statistics([a, b]) == []
    with torch.no_grad():
        for name in ("bn1.running_mean", "bn1.num_batches_tracked"):
            b.model.get_buffer(name).add_(1)
    assert differing_statistics([a, b]) == ["bn1.running_mean"]
    assert differing_statistics([b, dataclasses.replace(b)]) == []

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import randomise, save_timm, save_transformers, timm_model
from torch import nn

from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment, differing_statistics
from coin_hf.experts.classes import in_common_rows
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.heads import columns, head_tensors


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


def test_a_transformers_network_is_permuted(tmp_path: Path) -> None:
    for seed, (name, labels) in enumerate({"a": "pqrstuvwxy", "b": "yxwvutsrqp"}.items()):
        save_transformers(tmp_path / name, seed)
        settings = json.loads((tmp_path / name / "config.json").read_text())
        settings["id2label"] = {str(i): letter for i, letter in enumerate(labels)}
        settings["label2id"] = {letter: i for i, letter in enumerate(labels)}
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    a, own = (load_expert(str(tmp_path / name)) for name in "ab")
    with pytest.warns(UserWarning, match="'b' numbers its classes in another order than 'a'"):
        _, b = in_common_rows([a, load_expert(str(tmp_path / "b"))])
    assert b.class_order is not None
    assert b.class_order.tensors == ["classifier.weight", "classifier.bias"]
    assert (b.label_names, b.own_names) == (tuple("pqrstuvwxy"), tuple("yxwvutsrqp"))
    x = torch.rand(2, 3, 32, 32)
    ours, theirs = b.model(x).logits, own.model(x).logits
    # Up to rounding: a product's last bits may depend on which rows of the weight stand together.
    torch.testing.assert_close(ours, theirs.flip(1), rtol=0, atol=1e-6)
    assert torch.equal(columns(ours, b.class_order, "rows"), ours.flip(1))
    assert torch.equal(columns(theirs, b.class_order, "own"), theirs.flip(1))
    b.save_pretrained(tmp_path / "saved")
    assert load_expert(str(tmp_path / "saved")).label_names == a.label_names


def test_case_and_separators_do_not_make_another_class(tmp_path: Path) -> None:
    names = ["Golden Retriever", "tabby cat", *"cdefghij"]
    save_timm(tmp_path / "a", timm_model(0), label_names=names)
    other = ["TABBY_CAT", "golden-retriever", *names[2:]]
    save_timm(tmp_path / "b", timm_model(1), label_names=other)
    with pytest.warns(UserWarning, match="another order"):
        _, b = in_common_rows([load_expert(str(tmp_path / name)) for name in "ab"])
    assert b.class_order is not None
    assert b.class_order.rows == [1, 0, *range(2, 10)]


def test_two_classes_of_one_name_have_no_one_order(tmp_path: Path) -> None:
    save_timm(tmp_path / "a", timm_model(0), label_names=["crane", "crane", *"cdefghij"])
    save_timm(tmp_path / "b", timm_model(1), label_names=["c", "crane", "crane", *"defghij"])
    experts = in_common_rows([load_expert(str(tmp_path / name)) for name in "ab"])
    with pytest.raises(InputError, match="several have one name: tell them apart"):
        check_alignment(experts)


def test_a_network_whose_rows_are_not_its_classes_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 4), nn.LogSoftmax(1))
    network = Expert.from_module(
        model,
        name="odd",
        num_classes=4,
        preprocessing=lambda image: torch.ones(3, 2, 2) * image.size[0] / 300,
    )
    with pytest.raises(InputError, match=r"the head of expert 'odd' cannot be found"):
        head_tensors(network, [1, 0, 2, 3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "resnetv2_50", "levit_128s"])
def test_the_head_is_found_whatever_it_is_called(name: str) -> None:
    model = randomise(timm.create_model(name, num_classes=10), 0, 0.02)
    expert = Expert.from_module(model, name=name)
    declared = model.pretrained_cfg["classifier"]
    declared = [declared] if isinstance(declared, str) else list(declared)
    expected = {f"{module}.{kind}" for module in declared for kind in ("weight", "bias")}
    assert set(head_tensors(expert, list(range(9, -1, -1)))) == expected

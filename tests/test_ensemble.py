"""The coded ensemble: answers with one expert missing, and round trips through its folder."""

import html
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from builders import digits, fit_classifier, recipe_dict, save_digits, save_timm, save_transformers
from builders import timm_model as make_timm
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from coin_hf.ensemble import CodedEnsemble
from coin_hf.errors import InputError
from coin_hf.pipeline import encode
from coin_hf.recipe import Recipe


@pytest.fixture(scope="module")
def ensemble(coded: Path) -> CodedEnsemble:
    return CodedEnsemble.from_pretrained(coded, experts=True)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_missing_answer_is_decoded_from_the_others(ensemble: CodedEnsemble, x: Tensor) -> None:
    low, high = (expert.model(x) for expert in ensemble.experts)
    c = ensemble.model(x)
    first, second = ensemble(x, missing=[0]), ensemble(x, missing=[1])
    assert torch.equal(first[0], (c - 0.75 * high) / 0.25)
    assert torch.equal(first[1], high)
    assert torch.equal(second[0], low)
    assert torch.equal(second[1], (c - 0.25 * low) / 0.75)
    assert not torch.allclose(first[0], low)  # decoded indeed, not the expert asked
    nothing = ensemble(x)
    assert torch.equal(nothing[0], low)
    assert torch.equal(nothing[1], high)
    assert not first[0].requires_grad


def test_the_missing_expert_is_not_run_nor_the_coded_model_for_nothing(
    coded: Path, x: Tensor
) -> None:
    ensemble = CodedEnsemble.from_pretrained(coded, experts=True)
    ran: list[str] = []
    for expert in (ensemble.coded, *ensemble.experts):
        expert.model.register_forward_hook(lambda *_, name=expert.name: ran.append(name))
    ensemble(x, missing=[0])
    assert sorted(ran) == ["coded model", "high"]
    ran.clear()
    ensemble(x)
    assert ran == ["low", "high"]


def test_experts_on_disk_answer_alike(coded: Path) -> None:
    x = torch.randn(3, 3, 32, 32)
    plain, mapped = (
        CodedEnsemble.from_pretrained(coded, experts=True, on_disk=on_disk)
        for on_disk in (False, True)
    )
    for missing in ([], [0], [1]):
        for one, other in zip(plain(x, missing=missing), mapped(x, missing=missing), strict=True):
            assert torch.equal(one, other)
    for ensemble, resizable in ((plain, True), (mapped, False)):  # a mapped file has its size
        for expert in ensemble.experts or ():
            found = {value.untyped_storage().resizable() for value in expert.parameters.values()}
            assert found == {resizable}


def test_what_cannot_be_missing(ensemble: CodedEnsemble, coded: Path, x: Tensor) -> None:
    for i in (2, -1):
        with pytest.raises(ValueError, match=f"there is no expert {i}: they are numbered 0 to 1"):
            ensemble(x, missing=[i])
    with pytest.raises(ValueError, match=r"cannot decode experts \[0, 1\] from experts \[\]"):
        ensemble(x, missing=[0, 1])
    assert len(ensemble(x, missing=[1, 1])) == 2
    alone = CodedEnsemble.from_pretrained(coded)
    with pytest.raises(InputError, match=r"from_pretrained\(\.\.\., experts=True\)"):
        alone(x, missing=[0])
    assert repr(alone) == "CodedEnsemble(low, high; betas=[0.25, 0.75]; experts not loaded)"


@torch.no_grad()
def test_a_coded_model_answers_alone_where_that_is_asked_for(
    ensemble: CodedEnsemble, x: Tensor
) -> None:
    way_out = r"cannot decode experts \[0, 1\] .*; alone=True takes a coded model's own answer"
    with pytest.raises(ValueError, match=way_out):
        ensemble(x, missing=["low", "high"])
    c = ensemble.coded_logits(x)
    with pytest.raises(ValueError, match=way_out):
        ensemble.decode({}, c)
    for both in (
        ensemble(x, missing=["low", "high"], alone=True),
        ensemble.decode({}, c, alone=True),
    ):
        assert all(torch.equal(answer, c[0]) for answer in both)
    assert ensemble.how() == {"low": "expert", "high": "expert"}
    assert ensemble.how("high") == {"low": "expert", "high": "decoded"}
    assert ensemble.how([0, 1]) == {"low": "alone", "high": "alone"}
    one = ensemble(x, missing=[0], alone=True)  # what can be decoded is
    assert torch.equal(one[0], ensemble(x, missing=[0])[0])
    for call in (
        lambda: ensemble.how([0], coded=[]),
        lambda: ensemble(x, missing=[0], coded=[], alone=True),
    ):
        with pytest.raises(ValueError, match="cannot decode experts") as caught:
            call()
        assert "alone=True" not in str(caught.value), "no coded model is left to answer"


def test_the_code_decodes_answers_one_already_has(ensemble: CodedEnsemble, x: Tensor) -> None:
    with torch.no_grad():
        high, c = ensemble.experts[1].model(x), ensemble.model(x)
    found = ensemble.code.decode({1: high}, {0: c})
    assert torch.equal(found[0], ensemble(x, missing=[0])[0])


def test_experts_from_other_places(coded: Path, tmp_path: Path, x: Tensor) -> None:
    places = [str(coded.parent / "low"), str(coded.parent / "high")]
    ensemble = CodedEnsemble.from_pretrained(coded, experts=places)
    assert [expert.name for expert in ensemble.experts] == ["low", "high"]
    with pytest.raises(InputError, match="expected the places of 2 experts, got 1"):
        CodedEnsemble.from_pretrained(coded, experts=places[:1])
    save_timm(tmp_path / "odd", make_timm(num_classes=7))
    with pytest.raises(InputError, match="classes: 'coded model' has 10, 'high' has 7"):
        CodedEnsemble.from_pretrained(coded, experts=[places[0], str(tmp_path / "odd")])


def test_an_expert_that_changed_since_is_refused(coded: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copytree(coded.parent, tree)
    rmtree(tree / "high")
    save_timm(tree / "high", make_timm(7))
    with pytest.raises(InputError, match="high has changed: expected revision sha256:"):
        CodedEnsemble.from_pretrained(tree / "coded", experts=True)


def test_what_is_no_coded_model_is_refused(coded: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a coded model .it has no coin.json"):
        CodedEnsemble.from_pretrained(coded.parent / "low")
    with pytest.raises(InputError, match=r"there is no folder .* give an existing folder"):
        CodedEnsemble.from_pretrained(tmp_path / "nothing")
    with pytest.raises(InputError, match="the model 'me/nothing' is not in the local cache"):
        CodedEnsemble.from_pretrained("me/nothing")


def test_coin_hf_reads_back_what_it_wrote(coded: Path, tmp_path: Path, x: Tensor) -> None:
    first = CodedEnsemble.from_pretrained(coded, experts=True)
    first.save_pretrained(tmp_path / "again")
    second = CodedEnsemble.from_pretrained(tmp_path / "again", experts=True)
    assert second.coin == first.coin
    assert second.result == first.result
    for missing in ([], [0], [1]):
        pairs = zip(first(x, missing=missing), second(x, missing=missing), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    # Byte for byte the same weights, by the same rules.
    weights = (coded / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights


def test_preprocess_is_the_experts_own(ensemble: CodedEnsemble) -> None:
    image = digits(slice(0, 1))[0]["image"]
    found = ensemble.preprocess(image)
    assert found.shape == (3, 32, 32)
    assert torch.equal(found, ensemble.experts[1].preprocessing(image))
    # At the networks' own size nothing is resized: grayscale to RGB, then (v / 255 - 0.5) / 0.5.
    flat = Image.new("L", (32, 32), 51)
    torch.testing.assert_close(ensemble.preprocess(flat), torch.full((3, 32, 32), -0.6))


@pytest.mark.slow
def test_a_timm_expert_with_names_and_arguments_of_its_own(tmp_path: Path, x: Tensor) -> None:
    """Grayscale networks, pooled otherwise, whose classes have names: all of it is kept."""
    import timm

    save_digits(tmp_path / "digits")
    arguments = {"in_chans": 1, "global_pool": "max"}
    gray = {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}
    names = {"low": list("0123456789"), "high": ["zero", *"123456789"]}
    for seed, name in enumerate(names):
        save_timm(
            tmp_path / name,
            make_timm(seed, **arguments),
            model_args={**arguments, "num_classes": 10},
            label_names=names[name],
            **gray,
        )
    encode(Recipe.from_dict(recipe_dict(tmp_path))).save_pretrained(tmp_path / "coded")
    ensemble = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    assert ensemble.coded.label_names == ("0 / zero", *"123456789")
    x = x[:, :1]
    with torch.no_grad():
        expected = ensemble.model(x)
        by_timm = timm.create_model(f"local-dir:{tmp_path / 'coded'}", pretrained=True).eval()
        assert torch.equal(by_timm(x), expected)
        wrapped = AutoModelForImageClassification.from_pretrained(tmp_path / "coded").eval()
        assert torch.equal(wrapped(x).logits, expected)
    assert wrapped.config.id2label[0] == "0 / zero"


def test_transformers_experts(tmp_path: Path, x: Tensor) -> None:
    save_digits(tmp_path / "digits")
    for seed, name in enumerate(("low", "high")):
        save_transformers(tmp_path / name, seed)
    made = encode(Recipe.from_dict(recipe_dict(tmp_path, betas=[0.25, 0.75])))
    made.save_pretrained(tmp_path / "coded")
    names = {path.name for path in (tmp_path / "coded").iterdir()}
    assert names == {
        "README.md", "coin.json", "config.json", "erasure.svg", "model.safetensors", "nda.png",
        "preprocessor_config.json", "result.json",
    }  # fmt: skip
    read = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "coded").eval()
    expert = AutoModelForImageClassification.from_pretrained(tmp_path / "low").eval()
    with torch.no_grad():
        expected = made.model(x).logits
        assert torch.equal(read.model(x).logits, expected)
        assert torch.equal(plain(x).logits, expected)
        low = expert(x).logits
        decoded = read(x, missing=[1])
    assert torch.equal(decoded[0], low)
    assert torch.equal(decoded[1], (expected - 0.25 * low) / 0.75)
    assert not torch.allclose(expected, low)
    image = digits(slice(0, 1))[0]["image"].convert("RGB")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "coded")
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(read.preprocess(image)[None], pixels)
    answers = pipeline("image-classification", model=str(tmp_path / "coded"))(image, top_k=10)
    with torch.no_grad():
        best = int(made.model(pixels).logits.argmax())
    assert answers[0]["label"] == f"LABEL_{best}"


@pytest.mark.slow
def test_half_precision_experts(tmp_path: Path) -> None:
    save_digits(tmp_path / "digits")
    data = digits(slice(0, 200))
    for seed, (name, labels) in enumerate({"low": range(5), "high": range(5, 10)}.items()):
        model = make_timm(seed)
        fit_classifier(model, data, labels)
        save_timm(tmp_path / name, model.bfloat16())
    made = encode(Recipe.from_dict(recipe_dict(tmp_path)))
    made.save_pretrained(tmp_path / "coded")
    read = CodedEnsemble.from_pretrained(tmp_path / "coded", experts=True)
    assert {p.dtype for p in read.model.parameters()} == {torch.bfloat16}
    state = made.model.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in read.model.state_dict().items())
    x = read.preprocess(data[0]["image"])[None]  # float32, as transforms give it
    answers, halved = read(x, missing=[0]), read(x.bfloat16(), missing=[0])
    assert all(map(torch.equal, answers, halved))


def test_a_notebook_shows_the_table_and_the_erasure(coded: Path) -> None:
    ensemble = CodedEnsemble.from_pretrained(coded)
    shown = ensemble._repr_html_()
    assert "<code>CodedEnsemble(low, high; betas=[0.25, 0.75]; experts not loaded)</code>" in shown
    assert "<title>Missing: high</title>" in shown
    assert html.escape(ensemble.result.table()) in shown
    evil = [
        each.model_copy(update={"name": f"<script>{i}</script>"})
        for i, each in enumerate(ensemble.result.experts)
    ]
    named = ensemble.result.model_copy(update={"experts": evil, "erasures": []})
    assert "<script" not in named._repr_html_()
    assert "&lt;script&gt;1&lt;/script&gt;" in named._repr_html_()

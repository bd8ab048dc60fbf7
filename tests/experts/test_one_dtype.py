"""Experts of several dtypes in one, and timm's networks as transformers saves them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import save_timm, save_transformers, timm_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from coin_hf import InputError, load_expert
from coin_hf.experts.alignment import check_alignment
from coin_hf.experts.one_dtype import cast_expert, common_dtype, floating_dtype


def test_the_widest(tmp_path: Path) -> None:
    models = {"a": timm_model(0), "b": timm_model(1).half(), "c": timm_model(2).bfloat16()}
    experts = [load_expert(str(save_timm(tmp_path / name, m))) for name, m in models.items()]
    sentence = r"several dtypes \('a' float32, 'b' float16, 'c' bfloat16\), .* widest, float32"
    with pytest.warns(UserWarning, match=sentence):
        wanted = common_dtype(experts)
    assert [cast_expert(expert, wanted) for expert in experts] == [False, True, True]
    check_alignment(experts)
    stored = load_file(tmp_path / "c" / "model.safetensors")
    for name, value in experts[2].model.state_dict().items():
        assert value.dtype == (stored[name].dtype if "num_batches" in name else torch.float32)
        assert torch.equal(value, stored[name].to(value.dtype))


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_asked_for(tmp_path: Path, library: str) -> None:
    place = tmp_path / "a"
    if library == "timm":
        save_timm(place, timm_model(0))
    else:
        save_transformers(place)
    expert = load_expert(str(place))
    held = {name: value.clone() for name, value in expert.model.state_dict().items()}
    assert cast_expert(expert, common_dtype([expert], "bfloat16"))
    assert floating_dtype(expert) == torch.bfloat16
    expert.save_pretrained(tmp_path / "saved")
    again = load_expert(str(tmp_path / "saved")).model.state_dict()
    for name, value in held.items():
        wanted = value.bfloat16() if value.is_floating_point() else value
        assert torch.equal(again[name], wanted), name
        assert again[name].dtype == wanted.dtype


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    expert = load_expert(str(save_timm(tmp_path / "a", timm_model(0))))
    model: Any = expert.model
    model.register_parameter("again", model.fc.weight)
    cast_expert(expert, torch.float64)
    assert model.again is model.fc.weight
    assert model.again.dtype == torch.float64


def test_too_large(tmp_path: Path) -> None:
    model = timm_model(0)
    with torch.no_grad():
        model.fc.weight[0, 0] = 1e6  # type: ignore[union-attr,index,operator]
    expert = load_expert(str(save_timm(tmp_path / "a", model)))
    with pytest.raises(InputError, match=r"'fc\.weight' that is too large for float16: choose"):
        cast_expert(expert, common_dtype([expert], "float16"))


class TestWrapper:
    """timm's networks as transformers' TimmWrapper saves them."""

    @pytest.fixture
    def both(self, tmp_path: Path) -> tuple[Path, Path]:
        plain = save_timm(tmp_path / "plain", timm_model(0))
        wrapper = AutoModelForImageClassification.from_pretrained(plain)
        wrapper.save_pretrained(tmp_path / "wrapped")
        return plain, tmp_path / "wrapped"

    @pytest.mark.parametrize("library", ["auto", "timm", "transformers"])
    def test_it_is_timms(self, both: tuple[Path, Path], library: Any) -> None:
        plain, wrapped = (load_expert(str(each), library=library) for each in both)
        assert plain.library == wrapped.library == "timm"
        assert wrapped.label_names is None, "LABEL_0 ... are no names"
        check_alignment([plain, wrapped])
        expected = plain.model.state_dict()
        for name, value in wrapped.model.state_dict().items():
            assert torch.equal(value, expected[name]), name

    def test_with_the_prefix_of_earlier_versions(self, both: tuple[Path, Path]) -> None:
        plain, wrapped = both
        file = wrapped / "model.safetensors"
        state = {f"timm_model.{name}": value for name, value in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})
        with pytest.warns(UserWarning, match=r"begin with 'timm_model\.', which is stripped"):
            found = load_expert(str(wrapped)).model.state_dict()
        expected = load_expert(str(plain)).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    def test_its_own_names(self, both: tuple[Path, Path]) -> None:
        file = both[1] / "config.json"
        config = json.loads(file.read_text())
        names = [f"class {k}" for k in range(10)]
        file.write_text(json.dumps({**config, "label_names": names}))
        assert load_expert(str(both[1])).label_names == tuple(names)

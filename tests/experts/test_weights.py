"""Weights are the file's: kept to the bit, or refused in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import save_timm, save_transformers, timm_model
from safetensors.torch import load_file, save_file

from coin_hf import InputError, load_expert
from coin_hf.errors import boundary


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> str:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "model."])
def test_a_prefix_of_all_names_is_stripped_and_said(tmp_path: Path, prefix: str) -> None:
    folder = save_timm(tmp_path / "e", timm_model(0))
    state = load_file(folder / "model.safetensors")
    rewrite(folder, {prefix + name: value for name, value in state.items()})
    with pytest.warns(UserWarning, match=f"begin with '{prefix}', which is stripped"):
        expert = load_expert(str(folder))
    assert all(torch.equal(v, state[n]) for n, v in expert.model.state_dict().items())


def test_names_that_do_not_fit_are_listed_briefly(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "e", timm_model(0))
    state = load_file(folder / "model.safetensors")
    rewrite(folder, {f"model.{name}.old": value for name, value in state.items()})
    with pytest.raises(InputError, match=r"missing 'bn1.bias'; .*; and \d+ more; unex") as caught:
        load_expert(str(folder))
    assert len(str(caught.value)) < 1500


def test_extra_weights_of_transformers_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_transformers(tmp_path / "e")
    state = load_file(folder / "model.safetensors")
    rewrite(folder, {**state, "vit.layer.0.q.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(InputError, match=r"unexpected 'vit.layer.0.q.lora_A.weight'; .* merged"):
        load_expert(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "not the class 1: number them from 0"),
        ({"hidden_size": "many"}, "transformers cannot load it as an image classifier"),
        ({"model_type": "none such"}, "transformers cannot load it as an image classifier"),
    ],
)
def test_what_transformers_would_load_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save_transformers(tmp_path / "e", classes=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=message):
        load_expert(str(folder))


@pytest.mark.parametrize("said", ["float16", "bfloat16", "float64"])
def test_the_dtype_is_the_files_not_the_configs(tmp_path: Path, said: str) -> None:
    folder = save_transformers(tmp_path / "e")
    state = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    parameters = load_expert(str(folder)).parameters
    assert {value.dtype for value in parameters.values()} == {torch.float32}
    assert torch.equal(parameters["classifier.weight"], state["classifier.weight"])


def test_code_of_a_repository_is_never_offered_to_run(tmp_path: Path) -> None:
    folder = save_transformers(tmp_path / "e")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoModelForImageClassification": "mine.Net", "AutoImageProcessor": "mine.Net"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    load_expert(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_boundary_names_any_reason_and_leaves_our_own_alone() -> None:
    for error in (RuntimeError("no\n more"), KeyError("x"), RecursionError(), MemoryError("big")):
        with pytest.raises(InputError, match=r"^it is damaged \(.+\): mend it$") as caught:
            with boundary("it is damaged", "mend it"):
                raise error
        assert caught.value.__cause__ is error
    with pytest.raises(InputError, match=r"^ours$"), boundary("it is damaged", "mend it"):
        raise InputError("ours")
    with pytest.raises(KeyboardInterrupt), boundary("it is damaged", "mend it"):
        raise KeyboardInterrupt


def test_a_torn_copy_is_one_sentence(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "e", timm_model(0))
    shutil.copytree(folder, tmp_path / "f")
    (tmp_path / "f" / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1"
    )
    with pytest.raises(InputError, match=r"is a Git LFS pointer.*run `git lfs pull`"):
        load_expert(str(tmp_path / "f"))

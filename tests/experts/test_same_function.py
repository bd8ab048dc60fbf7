"""Experts are compared by what they compute and see, not by the words of their configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import save_timm, save_transformers, timm_model

from coin_hf import InputError, load_expert
from coin_hf.experts.alignment import check_alignment


def change(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def check(tmp_path: Path) -> None:
    check_alignment([load_expert(str(tmp_path / name)) for name in ("a", "b")])


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"_attn_implementation": "eager", "_attn_implementation_autoset": True}),
        ("config.json", {"initializer_range": 0.01, "note": "mine"}),
        ("preprocessor_config.json", {"data_format": "channels_first"}),
        ("preprocessor_config.json", {"rescale_factor": 0.00392156862745098}),
    ],
)
def test_other_words_are_no_difference(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    for seed, name in enumerate("ab"):
        save_transformers(tmp_path / name, seed)
    change(tmp_path / "b", file, **changes)
    check(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"layer_norm_eps": 1e-6}, "architecture, layer_norm_eps: 'a' has 1e-12"),
        ("config.json", {"hidden_act": "relu"}, "architecture, hidden_act: 'a' has gelu"),
        ("preprocessor_config.json", {"image_mean": [0.4] * 3}, "preprocessing, image_mean"),
        ("preprocessor_config.json", {"resample": 0}, "preprocessing, resample"),
    ],
)
def test_what_changes_the_function_or_the_input_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    for seed, name in enumerate("ab"):
        save_transformers(tmp_path / name, seed)
    change(tmp_path / "b", file, **changes)
    with pytest.raises(InputError, match=message):
        check(tmp_path)


def test_arguments_that_are_defaults_are_no_difference(tmp_path: Path) -> None:
    save_timm(tmp_path / "a", timm_model(0))
    save_timm(tmp_path / "b", timm_model(1), model_args={"global_pool": "avg", "in_chans": 3})
    check(tmp_path)
    for name, pool in (("c", "avg"), ("d", "max")):  # on maps of more than one position
        arguments = {"global_pool": pool}
        save_timm(tmp_path / name, timm_model(1), size=160, model_args=arguments)
    with pytest.raises(InputError, match="architecture, global_pool"):
        check_alignment([load_expert(str(tmp_path / name)) for name in ("c", "d")])

"""PEFT adapters as experts: merged by peft itself, pinned with their base, strangers' refused."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import save_transformers
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTModel

from coin_hf import InputError, load_expert
from coin_hf.experts.alignment import check_alignment
from coin_hf.hub.client import pin
from coin_hf.hub.hashes import folder_revision

TARGETS = ["q_proj", "v_proj", "query", "value"]
"""Both of the names that versions of transformers give them."""
HEAD = ["classifier"]
UNNAMED = "ignore:.*without names for its"


def base_network(folder: Path, classes: int) -> nn.Module:
    model: nn.Module = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=classes, ignore_mismatched_sizes=True
    )
    return model


def make_adapter(
    base: Path, folder: Path, seed: int = 0, classes: int = 10, config: Any = None
) -> dict[str, Tensor]:
    """Write an adapter as peft does; return what peft itself merges."""
    config = config or LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=HEAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(base_network(base, classes), config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    merged: dict[str, Tensor] = adapted.merge_and_unload().state_dict()
    return merged


def change(folder: Path, **keys: Any) -> Path:
    """Change keys of an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_transformers(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    make_adapter(base, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def refused() -> Callable[..., str]:
    def sentence(folder: Path, **given: Any) -> str:
        with pytest.raises(InputError) as caught:
            load_expert(str(folder), **given)
        return str(caught.value)

    return sentence


def assert_equal(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


CONFIGS = {
    "plain": LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=HEAD),
    "rslora": LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=HEAD, use_rslora=True
    ),
    "dora": LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=HEAD, use_dora=True
    ),
    "patterns and biases": LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*\.(q_proj|query|dense|fc1)",
        modules_to_save=HEAD,
        bias="lora_only",
        rank_pattern={"query|q_proj": 2},
        alpha_pattern={"query|q_proj": 3},
    ),
    "ia3": IA3Config(target_modules=TARGETS, feedforward_modules=[], modules_to_save=HEAD),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.filterwarnings(UNNAMED)
def test_it_is_what_peft_merges_to_the_bit(base: Path, tmp_path: Path, kind: str) -> None:
    expected = make_adapter(base, tmp_path / "adapter", config=CONFIGS[kind])
    expert = load_expert(str(tmp_path / "adapter"))
    assert_equal(expert.model, expected)
    start = base_network(base, 10).state_dict()
    changed = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert {"classifier.weight", "classifier.bias"} < changed, "the saved head is applied"
    assert not expert.model.training
    assert not any(parameter.requires_grad for parameter in expert.model.parameters())


def test_its_base_is_pinned_with_it(base: Path, adapter: Path) -> None:
    expert = load_expert(str(adapter))
    assert expert.revision == folder_revision(adapter)
    assert expert.base is not None
    assert (expert.base.model, expert.base.revision) == (str(base), folder_revision(base))
    (base / "more.txt").write_text("changed")
    sentence = "the base of expert 'adapter': the folder .* has changed"
    with pytest.raises(InputError, match=sentence):
        load_expert(str(adapter), base=str(base), base_revision=expert.base.revision)


def test_saved_it_is_a_plain_checkpoint(adapter: Path, tmp_path: Path) -> None:
    expert = load_expert(str(adapter))
    expert.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    again = load_expert(str(tmp_path / "saved"))
    assert_equal(again.model, expert.model.state_dict())
    check_alignment([expert, again])


def test_random_state_is_untouched(adapter: Path) -> None:
    before = torch.get_rng_state()
    load_expert(str(adapter))
    assert torch.equal(before, torch.get_rng_state())


class TestClasses:
    """The adapter's head says how many classes there are, its config.json what they are."""

    def test_more_than_the_base(self, base: Path, tmp_path: Path) -> None:
        expected = make_adapter(base, tmp_path / "adapter", classes=4)
        with pytest.warns(UserWarning, match="without names for its 4 classes: they are known by"):
            expert = load_expert(str(tmp_path / "adapter"))
        assert (expert.num_classes, expert.label_names) == (4, None)
        assert_equal(expert.model, expected)

    def test_a_base_without_a_head(self, tmp_path: Path) -> None:
        small = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=32, patch_size=8,
        )  # fmt: skip
        whole = save_transformers(tmp_path / "whole")
        ViTModel(small).save_pretrained(tmp_path / "base")
        (tmp_path / "base" / "preprocessor_config.json").write_bytes(
            (whole / "preprocessor_config.json").read_bytes()
        )
        expected = make_adapter(tmp_path / "base", tmp_path / "adapter", classes=5)
        with pytest.warns(UserWarning, match="without names for its 5 classes"):
            assert_equal(load_expert(str(tmp_path / "adapter")).model, expected)

    def test_names_of_its_own(self, base: Path, tmp_path: Path) -> None:
        make_adapter(base, tmp_path / "adapter", classes=3)
        names = {str(k): name for k, name in enumerate(("ant", "bee", "cat"))}
        (tmp_path / "adapter" / "config.json").write_text(json.dumps({"id2label": names}))
        expert = load_expert(str(tmp_path / "adapter"))
        assert expert.label_names == ("ant", "bee", "cat")
        assert expert.model.config.id2label == {0: "ant", 1: "bee", 2: "cat"}

    @pytest.mark.parametrize("labels", [3, ["a"], {"0": "a"}, None])
    @pytest.mark.filterwarnings(UNNAMED)
    def test_names_that_are_none(self, adapter: Path, labels: Any) -> None:
        (adapter / "config.json").write_text(json.dumps({"id2label": labels}))
        assert load_expert(str(adapter)).label_names is None

    def test_names_of_the_base(self, base: Path, adapter: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        names = {str(k): f"class {k}" for k in range(10)}
        (base / "config.json").write_text(json.dumps({**config, "id2label": names}))
        with pytest.warns(UserWarning, match="they are those of its base"):
            expert = load_expert(str(adapter))
        assert expert.label_names == tuple(names.values())

    def test_no_head_anywhere(
        self, base: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        make_adapter(base, tmp_path / "adapter", config=LoraConfig(target_modules=TARGETS))
        state = load_file(base / "model.safetensors")
        held = {name: value for name, value in state.items() if "classifier" not in name}
        save_file(held, base / "model.safetensors", metadata={"format": "pt"})
        assert refused(tmp_path / "adapter") == (
            "expert 'adapter': neither its adapter nor the base holds 'classifier.bias', "
            "'classifier.weight': train the adapter with `modules_to_save` for the classifier, or "
            "give a base that has it as `base`"
        )


def test_its_own_processor_comes_first(base: Path, adapter: Path) -> None:
    said = json.loads((base / "preprocessor_config.json").read_text())
    own = {**said, "image_mean": [0.1, 0.2, 0.3]}
    (adapter / "preprocessor_config.json").write_text(json.dumps(own))
    assert load_expert(str(adapter)).preprocessing.settings["image_mean"] == [0.1, 0.2, 0.3]


class TestBase:
    """Where the base lies."""

    def test_it_may_be_given(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        expected = load_expert(str(adapter)).model.state_dict()
        moved = base.rename(tmp_path / "moved")
        assert_equal(load_expert(str(adapter), base=str(moved)).model, expected)

    def test_gone(self, base: Path, adapter: Path, tmp_path: Path, refused: Any) -> None:
        base.rename(tmp_path / "moved")
        assert refused(adapter).startswith("the base of expert 'adapter': there is no folder")

    @pytest.mark.parametrize("place", [None, "", 3, "a\nb"])
    def test_none(self, adapter: Path, refused: Any, place: Any) -> None:
        sentence = refused(change(adapter, base_model_name_or_path=place))
        assert "is an adapter that names no base" in sentence

    def test_a_full_checkpoint_has_none(self, base: Path, refused: Any) -> None:
        assert "has a `base`, but is no adapter" in refused(base, base=str(base))

    def test_another_adapter(self, adapter: Path, base: Path, refused: Any) -> None:
        (base / "model.safetensors").unlink()
        (base / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
        assert "is itself an adapter" in refused(adapter)

    def test_other_shapes(self, adapter: Path, tmp_path: Path, refused: Any) -> None:
        small = ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=32, patch_size=8, num_labels=10,
        )  # fmt: skip
        other = AutoModelForImageClassification.from_config(small)
        other.save_pretrained(tmp_path / "other")
        sentence = refused(adapter, base=str(tmp_path / "other"))
        assert sentence.startswith("expert 'adapter': its adapter does not fit the base (")

    def test_fewer_layers(self, adapter: Path, tmp_path: Path, refused: Any) -> None:
        small = ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            image_size=32, patch_size=8, num_labels=10,
        )  # fmt: skip
        AutoModelForImageClassification.from_config(small).save_pretrained(tmp_path / "other")
        sentence = refused(adapter, base=str(tmp_path / "other"))
        assert "its adapter does not fit the base: unexpected 'vit" in sentence


class TestStrangers:
    """An adapter is data from a stranger."""

    @pytest.mark.parametrize("place", ["/models/base", "./base", "~/base", "a/b/c"])
    def test_folders_from_the_hub(
        self, adapter: Path, tmp_path: Path, monkeypatch: Any, refused: Any, place: str
    ) -> None:
        """What was downloaded may name a Hub id alone."""
        monkeypatch.setattr("coin_hf.experts.adapter_base.HF_HUB_CACHE", str(tmp_path))
        sentence = refused(change(adapter, base_model_name_or_path=place))
        assert "is an adapter from the Hub whose base is the folder" in sentence

    def test_a_hub_id_that_is_a_folder_here(
        self, base: Path, adapter: Path, tmp_path: Path, monkeypatch: Any, refused: Any
    ) -> None:
        monkeypatch.setattr("coin_hf.experts.adapter_base.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        sentence = refused(change(adapter, base_model_name_or_path="base"))
        assert "is an adapter from the Hub whose base is the folder" in sentence

    def test_no_code_is_imported(self, adapter: Path, tmp_path: Path, monkeypatch: Any) -> None:
        (tmp_path / "evil_parent.py").write_text("raise SystemExit('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        mapping = {"base_model_class": "Network", "parent_library": "evil_parent"}
        load_expert(str(change(adapter, auto_mapping=mapping, megatron_core="evil_parent")))
        assert "evil_parent" not in sys.modules

    @pytest.mark.parametrize("kind", ["PROMPT_TUNING", "LOHA", "ADALORA", None, 3, ["LORA"]])
    def test_other_kinds(self, adapter: Path, refused: Any, kind: Any) -> None:
        sentence = refused(change(adapter, peft_type=kind))
        assert f"is an adapter of the kind {kind!r}, which coin-hf does not merge" in sentence

    def test_prompt_tuning_as_peft_saves_it(self, base: Path, tmp_path: Path, refused: Any) -> None:
        config = PromptTuningConfig(
            num_virtual_tokens=2, token_dim=32, num_layers=2, num_attention_heads=2,
            peft_type="PROMPT_TUNING", base_model_name_or_path=str(base),
        )  # fmt: skip
        config.save_pretrained(tmp_path / "prompts")
        assert "of the kind 'PROMPT_TUNING'" in refused(tmp_path / "prompts")

    @pytest.mark.parametrize(
        "keys",
        [
            {"megatron_config": {"a": 1}},
            {"layer_replication": [[0, 2]]},
            {"loftq_config": {"bits": 4}},
            {"unheard_of": 1},
        ],
    )
    def test_other_settings(self, adapter: Path, refused: Any, keys: dict[str, Any]) -> None:
        sentence = refused(change(adapter, **keys))
        assert f"adapter_config.json sets '{next(iter(keys))}', which coin-hf does not" in sentence

    @pytest.mark.parametrize("start", ["pissa", "olora", "loftq", 1, [True]])
    def test_starts_that_change_the_base(self, adapter: Path, refused: Any, start: Any) -> None:
        assert "starts from `init_lora_weights`" in refused(
            change(adapter, init_lora_weights=start)
        )

    def test_other_tasks(self, adapter: Path, refused: Any) -> None:
        sentence = refused(change(adapter, task_type="CAUSAL_LM"))
        assert "is an adapter for 'CAUSAL_LM': only classifiers can be coded" in sentence

    @pytest.mark.parametrize("pattern", [r"(a+)+$", r"(.*query)*", r".*.*.*.*x", "a" * 2000])
    def test_patterns_that_take_for_ever(self, adapter: Path, refused: Any, pattern: str) -> None:
        assert "may take for ever to match" in refused(change(adapter, target_modules=pattern))
        sentence = refused(change(adapter, target_modules=TARGETS, rank_pattern={pattern: 2}))
        assert "may take for ever to match" in sentence

    def test_a_rank_far_larger_than_the_file(self, adapter: Path, refused: Any) -> None:
        sentence = refused(change(adapter, r=2**31))
        assert "far larger than its weights" in sentence

    @pytest.mark.parametrize(
        "value",
        [
            {"r": "a"},
            {"r": 0},
            {"modules_to_save": 3},
            {"rank_pattern": 3},
            {"target_modules": True},
        ],
    )
    def test_nonsense(self, adapter: Path, refused: Any, value: dict[str, Any]) -> None:
        assert refused(change(adapter, **value)).startswith("expert 'adapter'")

    def test_a_pickle(self, adapter: Path, refused: Any) -> None:
        weights = load_file(adapter / "adapter_model.safetensors")
        (adapter / "adapter_model.safetensors").unlink()
        torch.save(weights, adapter / "adapter_model.bin")
        assert refused(adapter) == (
            "expert 'adapter' is an adapter without adapter_model.safetensors: coin-hf reads "
            "safetensors alone, since a pickle (adapter_model.bin) can run code; save it again by "
            "peft's `save_pretrained`"
        )

    def test_cut_short(self, adapter: Path, refused: Any) -> None:
        file = adapter / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
        assert "adapter_model.safetensors is damaged or cut short" in refused(adapter)

    def test_a_damaged_configuration(self, adapter: Path, refused: Any) -> None:
        (adapter / "adapter_config.json").write_text("{")
        assert re.match("expert 'adapter': adapter_config.json is not JSON", refused(adapter))

    def test_values_that_are_not_finite(self, adapter: Path, refused: Any) -> None:
        weights = load_file(adapter / "adapter_model.safetensors")
        name = next(name for name in weights if "classifier" in name)
        weights[name].view(-1)[0] = float("nan")
        save_file(weights, adapter / "adapter_model.safetensors")
        assert "has a value that is not finite in 'classifier" in refused(adapter)


def test_without_peft(adapter: Path, refused: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refused(adapter) == (
        "expert 'adapter' is a PEFT adapter, which peft merges: install it with "
        "`pip install coin-hf[adapters]`"
    )


def test_pinning_reads_the_folder_alone(adapter: Path) -> None:
    assert pin(str(adapter), None) == folder_revision(adapter)

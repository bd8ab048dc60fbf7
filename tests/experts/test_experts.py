import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from builders import save_timm, save_transformers, timm_model
from safetensors.torch import load_file, save_file

from coin_hf.errors import InputError
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.trial import check_runs

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One expert of each library; to be copied before it is changed."""
    parent = tmp_path_factory.mktemp("experts")
    return {
        "timm": save_timm(parent / "timm", timm_model(0)),
        "transformers": save_transformers(parent / "transformers"),
    }


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder named `bad` with an expert of a library, to be damaged."""
    return lambda library: Path(shutil.copytree(folders[library], tmp_path / "bad"))


def configure(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def message(folder: Path, **arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_expert(str(folder), **arguments)
    return str(caught.value)


def logits(expert: Expert) -> torch.Tensor:
    with torch.no_grad():
        output = expert.model(IMAGES)
    return output if isinstance(output, torch.Tensor) else output.logits


class TestLoading:
    def test_timm(self, folders: dict[str, Path]) -> None:
        expert = load_expert(str(folders["timm"]))
        with torch.no_grad():
            assert torch.equal(logits(expert), timm_model(0)(IMAGES))
        assert (expert.name, expert.library, expert.num_classes) == ("timm", "timm", 10)
        assert expert.repo == str(folders["timm"])
        assert expert.architecture == {"architecture": "test_resnet"}
        assert expert.label_names is None
        assert expert.license is None

    def test_transformers(self, folders: dict[str, Path]) -> None:
        from transformers import AutoModelForImageClassification

        expert = load_expert(str(folders["transformers"]), name="vit")
        own = AutoModelForImageClassification.from_pretrained(folders["transformers"]).eval()
        with torch.no_grad():
            assert torch.equal(logits(expert), own(IMAGES).logits)
        assert (expert.name, expert.library, expert.num_classes) == ("vit", "transformers", 10)
        assert expert.label_names is None

    @pytest.mark.parametrize("library", ["timm", "transformers"])
    def test_it_is_in_eval_mode_without_gradients(
        self, folders: dict[str, Path], library: str
    ) -> None:
        expert = load_expert(str(folders[library]))
        assert not any(module.training for module in expert.model.modules())
        assert not any(parameter.requires_grad for parameter in expert.model.parameters())

    @pytest.mark.parametrize("library", ["timm", "transformers"])
    def test_random_states_are_untouched(self, folders: dict[str, Path], library: str) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        load_expert(str(folders[library]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert random.getstate() == before[2]

    def test_parameters_and_buffers_are_what_is_saved(self, folders: dict[str, Path]) -> None:
        expert = load_expert(str(folders["timm"]))
        saved = load_file(folders["timm"] / "model.safetensors")
        held = expert.parameters | expert.buffers
        assert held.keys() == saved.keys()
        assert all(torch.equal(value, saved[name]) for name, value in held.items())
        assert not expert.parameters.keys() & expert.buffers.keys()
        assert {n.rsplit(".")[-1] for n in expert.buffers} == {
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }

    def test_num_classes_within_model_args(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        configure(folder, model_args={"num_classes": 10})
        assert load_expert(str(folder)).num_classes == 10

    def test_class_names(self, tmp_path: Path) -> None:
        names = [f"digit {i}" for i in range(10)]
        expert = save_timm(tmp_path / "named", timm_model(0), label_names=names)
        assert load_expert(str(expert)).label_names == tuple(names)

    def test_class_names_of_transformers(self, copy: Callable[[str], Path]) -> None:
        folder = copy("transformers")
        configure(folder, id2label={str(i): f"digit {i}" for i in range(10)})
        assert load_expert(str(folder)).label_names == tuple(f"digit {i}" for i in range(10))

    @pytest.mark.parametrize(
        ("card", "license_name"),
        [
            ("---\nlicense: mit\n---\n# Expert\n", "mit"),
            ("---\nlicense: mit\nmodel-index: 3\n---\n", "mit"),
            ("---\nlicense: [mit, other]\n---\n", None),
            ("---\nlicense: : mit\n---\n", None),
            ("---\n- mit\n---\n", None),
            ("# Expert\n", None),
            (b"\xff\xfe", None),
        ],
    )
    def test_license(
        self, copy: Callable[[str], Path], card: str | bytes, license_name: str | None
    ) -> None:
        folder = copy("timm")
        (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
        assert load_expert(str(folder)).license == license_name


class TestDtype:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_timm_keeps_it(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model = timm_model(0).to(dtype)
        expert = load_expert(str(save_timm(tmp_path / "expert", model)))
        for name, value in model.state_dict().items():
            assert expert.model.state_dict()[name].dtype == value.dtype
            assert torch.equal(expert.model.state_dict()[name], value)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_transformers_keeps_it(self, copy: Callable[[str], Path], dtype: torch.dtype) -> None:
        folder = copy("transformers")
        reweigh(folder, lambda state: state.update({k: v.to(dtype) for k, v in state.items()}))
        configure(folder, dtype=str(dtype).removeprefix("torch."))
        expert = load_expert(str(folder))
        assert {value.dtype for value in expert.parameters.values()} == {dtype}

    def test_mixed_precision_is_widened_without_loss(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        reweigh(folder, lambda state: state.update({"fc.weight": state["fc.weight"].half()}))
        saved = load_file(folder / "model.safetensors")
        expert = load_expert(str(folder))
        assert {value.dtype for value in expert.parameters.values()} == {torch.float32}
        assert torch.equal(expert.parameters["fc.weight"], saved["fc.weight"].float())


class TestRevision:
    def test_a_folder_is_pinned_by_its_content(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        sha = load_expert(str(folder)).revision
        assert sha.startswith("sha256:")
        assert len(sha) == len("sha256:") + 64
        assert load_expert(str(folder), revision=sha).revision == sha
        reweigh(folder, lambda state: state["fc.bias"].add_(1))
        assert load_expert(str(folder)).revision != sha

    def test_a_changed_folder_is_refused(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        sha = load_expert(str(folder)).revision
        reweigh(folder, lambda state: state["fc.bias"].add_(1))
        text = message(folder, revision=sha)
        assert f"the folder {folder} has changed: expected revision {sha}, found sha256:" in text

    def test_no_folder(self, tmp_path: Path) -> None:
        assert message(tmp_path / "nowhere") == (
            f"there is no folder '{tmp_path / 'nowhere'}': give an existing folder or a Hub id"
        )

    def test_a_file(self, folders: dict[str, Path]) -> None:
        path = folders["timm"] / "config.json"
        assert message(path) == f"{path} is a file: give the folder that holds it"


@pytest.mark.parametrize("library", ["timm", "transformers"])
class TestDamage:
    def test_truncated_weights(self, copy: Callable[[str], Path], library: str) -> None:
        folder = copy(library)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        text = message(folder)
        assert text.startswith("expert 'bad': model.safetensors is damaged or cut short (")
        assert text.endswith("): download or save it again")

    @pytest.mark.parametrize("content", [b"", b"junk" * 99, b"\x08" + bytes(7) + b'{"a": 1}'])
    def test_damaged_weights(
        self, copy: Callable[[str], Path], library: str, content: bytes
    ) -> None:
        folder = copy(library)
        (folder / "model.safetensors").write_bytes(content)
        text = message(folder)
        assert text.startswith("expert 'bad': model.safetensors is damaged or cut short (")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_value_that_is_not_finite(
        self, copy: Callable[[str], Path], library: str, value: float
    ) -> None:
        folder = copy(library)
        name = {"timm": "fc.weight", "transformers": "classifier.weight"}[library]
        reweigh(folder, lambda state: state[name][3, :2].fill_(value))
        assert message(folder, name="mine") == (
            f"expert 'mine' has a value that is not finite in '{name}': "
            "use a checkpoint from before its training diverged"
        )

    def test_only_a_pickle(self, copy: Callable[[str], Path], library: str) -> None:
        folder = copy(library)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"never read")
        text = message(folder)
        assert text.startswith(
            "expert 'bad' holds only pickles (pytorch_model.bin): coin-hf reads safetensors alone"
        )
        assert "https://huggingface.co/spaces/safetensors/convert" in text

    def test_no_weights(self, copy: Callable[[str], Path], library: str) -> None:
        folder = copy(library)
        (folder / "model.safetensors").unlink()
        assert message(folder).startswith("expert 'bad' holds no model.safetensors: coin-hf reads")

    def test_no_config(self, copy: Callable[[str], Path], library: str) -> None:
        folder = copy(library)
        (folder / "config.json").unlink()
        assert message(folder) == (
            "expert 'bad' holds no config.json: give a timm or transformers checkpoint"
        )

    @pytest.mark.parametrize(
        ("content", "expected"),
        [("{", "config.json is not JSON ("), ("[]", "config.json must hold an object")],
    )
    def test_damaged_config(
        self, copy: Callable[[str], Path], library: str, content: str, expected: str
    ) -> None:
        folder = copy(library)
        (folder / "config.json").write_text(content)
        assert message(folder).startswith(f"expert 'bad': {expected}")

    def test_weights_that_do_not_fit(self, copy: Callable[[str], Path], library: str) -> None:
        folder = copy(library)
        head = {"timm": "fc", "transformers": "classifier"}[library]

        def change(state: dict[str, torch.Tensor]) -> None:
            state[f"{head}.weight"] = state[f"{head}.weight"][:7].clone()
            del state[f"{head}.bias"]

        width = load_file(folder / "model.safetensors")[f"{head}.weight"].shape[1]
        reweigh(folder, change)
        assert message(folder).startswith(
            f"expert 'bad': model.safetensors does not fit config.json: missing '{head}.bias'; "
            f"'{head}.weight' has shape (7, {width}), expected (10, {width})"
        )


class TestTimmConfig:
    def test_unexpected_weights(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        reweigh(folder, lambda state: state.update(extra=torch.zeros(1)))
        assert message(folder) == (
            "expert 'bad': model.safetensors does not fit config.json: unexpected 'extra'"
        )

    def test_an_unknown_architecture(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        configure(folder, architecture="resnet5000")
        assert message(folder) == (
            f"expert 'bad': timm {timm.__version__} has no architecture 'resnet5000': check "
            "config.json, or install a newer timm"
        )

    @pytest.mark.parametrize("architecture", [None, 3, ["resnet50"]])
    def test_an_architecture_that_is_no_name(
        self, copy: Callable[[str], Path], architecture: Any
    ) -> None:
        folder = copy("timm")
        configure(folder, architecture=architecture)
        assert message(folder).startswith(
            "expert 'bad': config.json names no timm `architecture`, such as 'resnet50' "
            f"(got {architecture!r})"
        )

    def test_the_wrong_library(self, folders: dict[str, Path]) -> None:
        text = message(folders["transformers"], library="timm")
        assert text.startswith("expert 'transformers': config.json names no timm `architecture`")

    def test_unknown_model_args(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        configure(folder, model_args={"depths": 3})
        assert "cannot build 'test_resnet' (" in message(folder)
        assert "unexpected keyword argument 'depths'" in message(folder)

    @pytest.mark.parametrize("key", ["pretrained_cfg", "model_args"])
    def test_settings_that_are_no_object(self, copy: Callable[[str], Path], key: str) -> None:
        folder = copy("timm")
        configure(folder, **{key: "x"})
        assert message(folder) == (
            f"expert 'bad': `{key}` in config.json must be an object, got 'x'"
        )

    def test_weights_of_another_name(self, copy: Callable[[str], Path]) -> None:
        folder = copy("timm")
        (folder / "model.safetensors").rename(folder / "model_ema.safetensors")
        assert message(folder) == (
            "expert 'bad' has no model.safetensors, as timm names its weights"
        )

    def test_five_channels(self, tmp_path: Path) -> None:
        model = timm_model(0, in_chans=5)
        folder = save_timm(tmp_path / "wide", model, model_args={"in_chans": 5})
        assert message(folder) == (
            "expert 'wide' takes images of 5 channels: only 1 and 3 are supported"
        )


class TestTransformersConfig:
    def test_no_image_processor(self, copy: Callable[[str], Path]) -> None:
        folder = copy("transformers")
        (folder / "preprocessor_config.json").unlink()
        assert message(folder) == (
            "expert 'bad' has no image processor: its repository needs a "
            "preprocessor_config.json, written by `AutoImageProcessor.save_pretrained`"
        )

    @pytest.mark.parametrize(
        ("config", "kind"),
        [
            ({}, "an image"),
            ({"model_type": "bert"}, "a text"),  # there is no BERT for images
            ({"model_type": "nothing"}, "an image"),
        ],
    )
    def test_not_a_classifier(
        self, copy: Callable[[str], Path], config: dict[str, str], kind: str
    ) -> None:
        folder = copy("transformers")
        (folder / "config.json").write_text(json.dumps(config))
        text = message(folder)
        assert text.startswith(f"expert 'bad': transformers cannot load it as {kind} classifier (")
        assert "\n" not in text

    def test_code_in_the_repository_is_never_run(
        self, copy: Callable[[str], Path], tmp_path: Path
    ) -> None:
        folder = copy("transformers")
        flag = tmp_path / "run"
        (folder / "own.py").write_text(f"open({str(flag)!r}, 'w')\n")
        configure(
            folder,
            model_type="own",
            auto_map={"AutoConfig": "own.C", "AutoModelForImageClassification": "own.M"},
        )
        assert "cannot load it as an image classifier" in message(folder)
        assert not flag.exists()


def test_names_by_number_are_read_and_others_said_to_be_left_out(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "e", timm_model(0))
    configure(folder, label_names={"0": "zero", "9": "nine"})
    gaps = ["zero", *(f"LABEL_{i}" for i in range(1, 9)), "nine"]
    assert load_expert(str(folder)).label_names == tuple(gaps)
    for names in (["a", "b"], {"10": "ten"}, list("abcdefghijk"), "abc"):
        configure(folder, label_names=names)
        with pytest.warns(UserWarning, match="are not the names of its 10 classes"):
            assert load_expert(str(folder)).label_names is None


def test_a_network_that_cannot_take_its_own_input_is_refused(tmp_path: Path) -> None:
    model = timm_model(0, "vit_tiny_patch16_224", img_size=64)
    arguments: Any = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 64}}
    check_runs(load_expert(str(save_timm(tmp_path / "fits", model, size=64, **arguments))))
    with pytest.raises(InputError, match=r"cannot take the input of shape \(3, 32, 32\) that its"):
        check_runs(load_expert(str(save_timm(tmp_path / "small", model, size=32, **arguments))))
    model.half()
    with torch.no_grad():
        model.head.bias.fill_(6e4)
        model.norm.bias.fill_(6e4)
    with pytest.raises(InputError, match=r"logits that are not finite in torch\.float16"):
        check_runs(load_expert(str(save_timm(tmp_path / "huge", model, size=64, **arguments))))

"""Text classifiers as experts: their tokenizers, lengths and padding, and what is refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from builders import randomise, save_transformers
from safetensors.torch import load_file, save_file
from text_builders import KINDS, WIDEST, save_text, sentences, text_model, tokenizer

from coin_hf.errors import InputError
from coin_hf.experts.alignment import check_alignment
from coin_hf.experts.classes import in_common_rows
from coin_hf.experts.expert import Expert, load_expert
from coin_hf.experts.probes import probe_batch
from coin_hf.experts.text_preprocessing import (
    folder_tokenizer,
    preprocessed,
    tokenizer_preprocessing,
)
from coin_hf.experts.transformers_models import task_of
from coin_hf.experts.trial import check_runs
from coin_hf.networks.logits import call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for kind in KINDS:
        save_text(folder / kind, kind)
    return folder


@pytest.fixture
def changed(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's repository, with settings of its JSON files changed or removed."""

    def change(kind: str, file: str = "config.json", **changes: Any) -> Path:
        folder = tmp_path / "bad"
        shutil.copytree(saved / kind, folder)
        said = json.loads((folder / file).read_text()) | changes
        said = {key: value for key, value in said.items() if value is not ...}
        (folder / file).write_text(json.dumps(said))
        return folder

    return change


def message(act: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", KINDS)
class TestEveryFamily:
    def test_it_is_what_transformers_itself_computes(self, saved: Path, kind: str) -> None:
        from transformers import pipeline

        expert = load_expert(str(saved / kind))
        assert (expert.task, expert.num_classes) == ("text-classification", 2)
        check_runs(expert)
        said = sentences(1)[0][0]
        x = expert.preprocessing(said)
        assert all(value.shape == (len(x["input_ids"]),) for value in x.values())
        logits = call(expert.model, {name: value[None] for name, value in x.items()})
        plain = pipeline("text-classification", model=str(saved / kind))
        scores = {each["label"]: each["score"] for each in plain(said, top_k=None)}
        ours = logits.softmax(1)[0].tolist()
        assert ours == pytest.approx([scores["LABEL_0"], scores["LABEL_1"]], abs=1e-6)

    def test_padded_answers_are_those_of_each_text_alone(self, saved: Path, kind: str) -> None:
        expert = load_expert(str(saved / kind))
        said = sentences(9)[0]
        alone = torch.cat(
            [call(expert.model, preprocessed(expert.preprocessing, [s])) for s in said]
        )
        batch = preprocessed(expert.preprocessing, said)
        assert not batch["attention_mask"].all()
        torch.testing.assert_close(call(expert.model, batch), alone, rtol=1e-5, atol=1e-5)
        expert.model.double()
        alone = torch.cat(
            [call(expert.model, preprocessed(expert.preprocessing, [s])) for s in said]
        )
        assert (call(expert.model, batch) - alone).abs().max() < 1e-6
        longer = {
            name: torch.nn.functional.pad(value, (0, 3), value=pad)
            for (name, value), pad in zip(
                batch.items(), [expert.preprocessing.processor.pad_token_id, 0, 0], strict=False
            )
        }
        longer["attention_mask"][:, -3:] = 0
        assert (call(expert.model, longer) - alone).abs().max() < 1e-6
        assert alone.std(0).min() > 1e-3  # they do differ

    def test_a_tokenizer_that_pads_on_the_left_is_padded_on_the_right(
        self, tmp_path: Path, kind: str
    ) -> None:
        expert = load_expert(str(save_text(tmp_path / "left", kind, padding_side="left")))
        check_runs(expert)
        batch = preprocessed(expert.preprocessing, ["the film", "the film was bright and warm"])
        assert batch["attention_mask"][0].tolist()[0] == 1
        assert batch["attention_mask"][0].tolist()[-1] == 0

    def test_saved_and_loaded_it_is_the_same(self, saved: Path, tmp_path: Path, kind: str) -> None:
        expert = load_expert(str(saved / kind))
        preprocessed(expert.preprocessing, sentences(3)[0])  # leaves no trace in what is saved
        expert.save_pretrained(tmp_path / "again")
        again = load_expert(str(tmp_path / "again"))
        check_alignment([expert, again])
        assert again.preprocessing.settings == expert.preprocessing.settings
        said = (tmp_path / "again" / "tokenizer_config.json").read_text()
        assert json.loads(said) == json.loads((saved / kind / "tokenizer_config.json").read_text())
        again.save_pretrained(tmp_path / "third")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "again" / name).read_text() == (
                tmp_path / "third" / name
            ).read_text()

    def test_lengths(self, tmp_path: Path, kind: str) -> None:
        folder = save_text(tmp_path / "long", kind, model_max_length=10**30)
        prepare = load_expert(str(folder)).preprocessing
        longest = WIDEST - 2 if kind == "roberta" else WIDEST  # the pad token's number is 1
        assert prepare.settings["max_length"] == longest
        text = " ".join(sentences(20)[0])
        assert len(prepare(text)["input_ids"]) == longest
        assert len(prepare(text, 7)["input_ids"]) == 7
        call(load_expert(str(folder)).model, preprocessed(prepare, [text]))  # all positions exist
        with pytest.raises(InputError) as caught:
            prepare(text, WIDEST + 1)
        assert str(caught.value) == (
            f"`max_length` is {WIDEST + 1}, but the experts take {longest} tokens: give at most "
            "that"
        )


class TestTokenising:
    def test_pairs(self, saved: Path) -> None:
        prepare = load_expert(str(saved / "bert")).preprocessing
        x = prepare(("the film", "was bright"))
        assert x["token_type_ids"].tolist() == sorted(x["token_type_ids"].tolist())
        assert x["token_type_ids"].max() == 1
        assert torch.equal(prepare(["the film", "was bright"])["input_ids"], x["input_ids"])
        assert prepare("the film")["token_type_ids"].max() == 0

    def test_what_is_no_text(self, saved: Path) -> None:
        prepare = load_expert(str(saved / "bert")).preprocessing
        assert message(lambda: prepare(("a", "b", "c"))) == (
            "a text classifier takes a text or a pair of texts, got tuple of 3: give a string, or "
            "a tuple of two"
        )
        assert message(lambda: prepare([1])).startswith("a text classifier takes a text")

    def test_the_tokenizers_own_limit(self, tmp_path: Path) -> None:
        folder = save_text(tmp_path / "short", "bert", model_max_length=12)
        assert load_expert(str(folder)).preprocessing.longest == 12

    def test_a_vocabulary_without_tokenizer_json(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "old"
        shutil.copytree(saved / "bert", folder)
        words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
        expert = load_expert(str(folder))
        check_runs(expert)
        x = expert.preprocessing("the film was bright")
        theirs = load_expert(str(saved / "bert")).preprocessing("the film was bright")
        assert torch.equal(x["input_ids"], theirs["input_ids"])
        expert.save_pretrained(tmp_path / "again")
        check_alignment([expert, load_expert(str(tmp_path / "again"))])

    def test_a_network_in_memory(self) -> None:
        model, tokens = text_model("distilbert"), tokenizer("distilbert")
        expert = Expert.from_module(model, name="mine", processor=tokens)
        check_runs(expert)
        assert expert.task == "text-classification"
        bare = Expert.from_module(model, name="mine")
        assert bare.task == "text-classification"
        with pytest.raises(InputError, match="has no tokenizer: give tensors of tokens"):
            bare.preprocessing("a text")


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """All places of plain data; of long lists and of vocabularies the first."""
    inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    for key, value in inner[:25]:
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


class TestRefused:
    def test_no_tokenizer(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "bad"
        shutil.copytree(saved / "bert", folder)
        (folder / "tokenizer.json").unlink()
        assert message(lambda: load_expert(str(folder))) == (
            "expert 'bad' has no tokenizer: its repository needs a tokenizer.json; save the "
            "tokenizer it was fine-tuned with by `AutoTokenizer.save_pretrained`"
        )

    def test_a_damaged_tokenizer(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "bad"
        shutil.copytree(saved / "bert", folder)
        (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
        text = message(lambda: load_expert(str(folder)))
        assert text.startswith("expert 'bad' has no tokenizer that transformers can load (")

    def test_code_of_a_tokenizer_is_never_run(self, changed: Callable[..., Path]) -> None:
        folder = changed(
            "bert",
            "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
            tokenizer_class="Evil",
        )
        (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
        try:
            load_expert(str(folder))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
        assert not (folder / "ran").exists()

    def test_a_file_without_end(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "bad"
        shutil.copytree(saved / "bert", folder)
        with (folder / "vocab.txt").open("wb") as stream:
            stream.truncate((1 << 27) + 1)
        assert message(lambda: load_expert(str(folder))) == (
            "expert 'bad' has a vocab.txt of more than 128 MiB, which no vocabulary needs: save "
            "the tokenizer it was fine-tuned with by `AutoTokenizer.save_pretrained`"
        )

    def test_a_length_that_is_no_number(self, changed: Callable[..., Path]) -> None:
        folder = changed("bert", "tokenizer_config.json", model_max_length=["x"])
        assert message(lambda: load_expert(str(folder))) == (
            "expert 'bad' has a tokenizer whose `model_max_length` is ['x'], no number: correct it "
            "in tokenizer_config.json"
        )

    def test_a_tokenizer_written_in_python(self) -> None:
        from transformers import ByT5Tokenizer

        assert message(
            lambda: Expert.from_module(text_model("bert"), name="mine", processor=ByT5Tokenizer())
        ) == (
            "expert 'mine' has a tokenizer written in Python, whose content cannot be compared: "
            "save it as a fast tokenizer, with a tokenizer.json"
        )

    @pytest.mark.parametrize("kind", ["bert", "gpt2", "deberta-v2"])
    def test_damaged_tokenizers_are_one_sentence(
        self, saved: Path, tmp_path: Path, kind: str
    ) -> None:
        """Values of both files replaced by others, one at a time."""
        random = Random(kind)
        network = text_model(kind)
        for file in 20 * ("tokenizer.json", "tokenizer_config.json"):
            said = json.loads((saved / kind / file).read_text())
            node, key = random.choice(list(_places(said)))
            node[key] = random.choice([None, -1, 0, 10**30, "x", [], {}, [[]], True, 1e308])
            folder = tmp_path / "bad"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved / kind, folder)
            (folder / file).write_text(json.dumps(said))
            with suppress(InputError):
                found = tokenizer_preprocessing(folder_tokenizer(folder, "bad"), network, "bad")
                probe_batch(found)

    def test_no_pad_token(self, changed: Callable[..., Path]) -> None:
        folder = changed("gpt2", "tokenizer_config.json", pad_token=...)
        assert message(lambda: load_expert(str(folder))) == (
            "expert 'bad' has a tokenizer without a pad token, so that texts cannot be batched: "
            "set `tokenizer.pad_token = tokenizer.eos_token` and `model.config.pad_token_id = "
            "tokenizer.pad_token_id`, and save both again"
        )

    def test_no_pad_token_of_the_network(self, changed: Callable[..., Path]) -> None:
        folder = changed("gpt2", pad_token_id=None)
        assert message(lambda: load_expert(str(folder))) == (
            "expert 'bad' has no `pad_token_id` in its config.json, by which its network finds the "
            "end of a text: set it to 0, the tokenizer's pad token"
        )

    def test_another_pad_token_of_the_network(self, changed: Callable[..., Path]) -> None:
        expert = load_expert(str(changed("gpt2", pad_token_id=5)))
        assert message(lambda: check_runs(expert)) == (
            "expert 'bad' answers a text otherwise where it is padded to the length of another: "
            "set `pad_token_id` in its config.json to the tokenizer's (0), or give a network that "
            "leaves padding out"
        )

    def test_a_single_logit(self, tmp_path: Path) -> None:
        folder = save_text(tmp_path / "scores", "bert", classes=1)
        assert message(lambda: load_expert(str(folder))) == (
            "expert 'scores' has a single logit, as for regression, and no classes to decode: give "
            "a classifier of two classes or more"
        )

    def test_more_tokens_than_the_network_knows(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "bad"
        text_model("bert", vocabulary=20).save_pretrained(folder)
        shutil.copy(saved / "bert" / "tokenizer.json", folder)
        shutil.copy(saved / "bert" / "tokenizer_config.json", folder)
        text = message(lambda: load_expert(str(folder)))
        assert text.startswith("expert 'bad' has a tokenizer of ")
        assert text.endswith("its network knows 20: give the tokenizer it was fine-tuned with")

    def test_a_network_without_its_head(self, tmp_path: Path) -> None:
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertModel(BertConfig(vocab_size=400, **sizes)).save_pretrained(tmp_path / "bad")
        tokenizer("bert").save_pretrained(tmp_path / "bad")
        text = message(lambda: load_expert(str(tmp_path / "bad")))
        assert "missing 'classifier.bias'" in text
        assert text.endswith(
            "give a checkpoint fine-tuned for text classification, its adapters merged"
        )

    def test_a_stale_constant_is_left_out(self, changed: Callable[..., Path]) -> None:
        folder = changed("gpt2")
        state = load_file(folder / "model.safetensors")
        state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        check_runs(load_expert(str(folder)))
        state["transformer.h.0.attn.other"] = torch.tensor(-1e4)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        assert "unexpected 'transformer.h.0.attn.other'" in message(
            lambda: load_expert(str(folder))
        )


class TestAlignment:
    def differences(self, *folders: Path) -> str:
        with pytest.raises(InputError) as caught:
            check_alignment([load_expert(str(folder)) for folder in folders])
        return str(caught.value)

    def test_other_tokenizers(self, tmp_path: Path) -> None:
        for name, settings in {
            "a": {},
            "left": {"padding_side": "left"},
            "cut": {"truncation_side": "left"},
            "short": {"model_max_length": 20},
            "unknown": {"unk_token": "[SEP]"},
        }.items():
            save_text(tmp_path / name, "distilbert", **settings)
        for name, said in {
            "left": "preprocessing, padding_side: 'a' has right, 'left' has left",
            "cut": "preprocessing, truncation_side: 'a' has right, 'cut' has left",
            "short": "preprocessing, max_length: 'a' has 36, 'short' has 20",
            "unknown": "preprocessing, special_tokens: 'a' has {",
        }.items():
            assert said in self.differences(tmp_path / "a", tmp_path / name)

    def test_another_vocabulary(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "other"
        shutil.copytree(saved / "bert", folder)
        text = (folder / "tokenizer.json").read_text()
        assert '"film"' in text
        (folder / "tokenizer.json").write_text(text.replace('"film"', '"filn"'))
        assert "preprocessing, tokenizer: 'bert' has sha256:" in self.differences(
            saved / "bert", folder
        )

    def test_how_it_was_last_used_is_no_difference(self, tmp_path: Path) -> None:
        save_text(tmp_path / "a", "bert")
        save_text(tmp_path / "b", "bert", 1)
        used = tokenizer("bert")
        used(["a film", "b"], padding=True, truncation=True, max_length=8)
        used.save_pretrained(tmp_path / "b")
        said = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
        assert said["truncation"] is not None
        check_alignment([load_expert(str(tmp_path / name)) for name in "ab"])

    def test_images_and_texts(self, saved: Path, tmp_path: Path) -> None:
        text = self.differences(save_transformers(tmp_path / "vit"), saved / "bert")
        assert "task: 'vit' is for image-classification, 'bert' for text-classification" in text

    @pytest.mark.parametrize("kind", KINDS)
    def test_classes_in_another_order(self, tmp_path: Path, kind: str) -> None:
        save_text(tmp_path / "a", kind, names=["bad", "good", "mixed"], classes=3)
        save_text(tmp_path / "b", kind, 1, names=["mixed", "Good", "bad"], classes=3)
        own = load_expert(str(tmp_path / "b"))
        with pytest.warns(UserWarning, match="numbers its classes in another order"):
            a, b = in_common_rows([load_expert(str(tmp_path / name)) for name in "ab"])
        assert b.class_order is not None
        x = preprocessed(b.preprocessing, sentences(4)[0])
        torch.testing.assert_close(call(b.model, x), call(own.model, x)[:, [2, 1, 0]])
        check_alignment([a, b])


def test_what_a_network_classifies() -> None:
    cases: dict[str, list[dict[str, Any]]] = {
        "text-classification": [
            {"architectures": ["BertForSequenceClassification"], "model_type": "bert"},
            {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
            {"model_type": "gpt2"},
            {"architectures": "odd", "model_type": "roberta"},
        ],
        "image-classification": [
            {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
            {"model_type": "vit"},
            {"model_type": "nothing"},
            {"model_type": ["bert"], "architectures": [3]},
            {},
        ],
    }
    for task, configs in cases.items():
        assert [task_of(config) for config in configs] == [task] * len(configs)


SIZES = {
    "vocab_size": 400,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": WIDEST,
    "pad_token_id": 0,
}


def in_memory(name: str, **settings: Any) -> Expert:
    """A network of another family in memory, with BERT's small tokenizer."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return Expert.from_module(
        randomise(model, 1, scale=0.2), name=name, processor=tokenizer("distilbert")
    )


@pytest.mark.parametrize("name", ["Deberta", "Electra", "Llama", "Qwen2", "ModernBert"])
def test_other_families(name: str) -> None:
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    tokens = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    more = {"Deberta": relative, "Qwen2": {"num_key_value_heads": 2}, "ModernBert": tokens}
    expert = in_memory(name, **SIZES, **more.get(name, {}))
    check_runs(expert)
    expert.model.double()
    said = sentences(4)[0]
    alone = [call(expert.model, preprocessed(expert.preprocessing, [text])) for text in said]
    together = call(expert.model, preprocessed(expert.preprocessing, said))
    assert (together - torch.cat(alone)).abs().max() < 1e-6


def test_a_network_that_reads_padding_is_refused() -> None:
    sizes = {"vocab_size": 400, "d_model": 24, "n_layer": 1, "n_head": 2, "d_inner": 32}
    expert = in_memory("XLNet", **sizes, pad_token_id=0)
    assert "answers a text otherwise where it is padded" in message(lambda: check_runs(expert))

"""One input answered in both ways, on networks in memory."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from builders import digits, make_world
from text_builders import make_text_world

from coin_hf import CodedEnsemble, InputError, Recipe
from coin_hf.page.answering import answer, class_names, erased, in_turn, refusal
from coin_hf.page.examples import draw_examples
from coin_hf.page.inputs import components, prepared
from coin_hf.pipeline import encode

NAMED = ("first", "second")


@pytest.fixture(scope="module")
def ensemble(coded: Path) -> CodedEnsemble:
    return CodedEnsemble.from_pretrained(coded, experts=True)


@pytest.fixture
def x(ensemble: CodedEnsemble) -> Any:
    return ensemble.preprocess(digits(slice(300, 301))[0]["image"])


def test_an_expert_that_is_there_answers_itself_and_is_decoded_beside(
    ensemble: CodedEnsemble, x: Any
) -> None:
    found = answer(ensemble, x, "high", [])
    batch = x.unsqueeze(0)
    assert found.own is not None
    assert found.decoded is not None
    assert torch.equal(found.own.logits, ensemble(batch)[1][0])
    assert torch.equal(found.decoded.logits, ensemble(batch, missing=["high"])[1][0])
    assert (found.own.networks, found.decoded.networks) == (1, 2)
    assert found.own.seconds > 0 < found.decoded.seconds
    assert found.alone == int(ensemble.coded_logits(batch)[0].argmax())
    difference = (found.own.logits - found.decoded.logits).abs().max()
    assert found.difference == float(difference) > 0
    assert found.agree == (found.own.logits.argmax() == found.decoded.logits.argmax())
    assert found.labels == tuple(f"LABEL_{k}" for k in range(10))


def test_an_expert_that_is_off_does_not_run(ensemble: CodedEnsemble, x: Any) -> None:
    assert ensemble.experts is not None
    ran: list[str] = []
    hooks = [
        expert.model.register_forward_hook(lambda *_, name=expert.name: ran.append(name))
        for expert in ensemble.experts
    ]
    found = answer(ensemble, x, "low", ["low"])
    assert set(ran) == {"high"}
    assert found.own is None
    assert found.agree is found.difference is None
    assert found.decoded is not None
    ran.clear()
    found = answer(ensemble, x, "low", ["high"])  # it is there, but could not be decoded
    assert set(ran) == {"low"}
    assert found.own is not None
    assert found.decoded is None
    for hook in hooks:
        hook.remove()


def test_too_many_that_are_off(ensemble: CodedEnsemble, x: Any) -> None:
    said = (
        "'low' cannot be answered for: low, high are switched off, and one coded model makes good "
        "for one missing expert; switch one on again"
    )
    assert refusal(ensemble, "low", ["high", "low"]) == said
    assert refusal(ensemble, "low", ["low"]) is refusal(ensemble, "low", ["high"]) is None
    assert erased(ensemble, "high", ["low"]) == ["low", "high"]
    with pytest.raises(InputError, match="switch one on again"):
        answer(ensemble, x, "low", ["low", "high"])


@pytest.mark.slow
def test_two_coded_models_make_good_for_two(tmp_path: Path) -> None:
    ensemble = encode(Recipe.from_yaml(make_world(tmp_path, coded=2)))
    x = ensemble.preprocess(digits(slice(300, 301))[0]["image"])
    found = answer(ensemble, x, "low", ["low", "high"])
    assert found.decoded is not None
    assert found.decoded.networks == 2
    expected = ensemble(x.unsqueeze(0), missing=[0, 1])[0][0]
    assert torch.equal(found.decoded.logits, expected)


def test_equal_class_names_are_told_apart(
    ensemble: CodedEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CodedEnsemble, "label_names", [("crane", "x", "crane"), None])
    assert class_names(ensemble, 0, 3) == ("crane (0)", "x", "crane (2)")
    assert class_names(ensemble, 1, 2) == ("LABEL_0", "LABEL_1")


def test_ways_are_timed_by_turns_after_one_run_that_is_not_counted() -> None:
    ran: list[str] = []

    def way(name: str) -> int:
        ran.append(name)
        return len(ran)

    found = in_turn([lambda: way("a"), None, lambda: way("b")], repeats=2)
    assert ran == ["a", "b", "a", "b", "a", "b"]
    assert found[1] is None
    assert found[0] is not None
    assert found[2] is not None
    assert (found[0][0], found[2][0]) == (5, 6)


def test_examples_are_drawn_from_the_experts_own_test_data(
    ensemble: CodedEnsemble, tmp_path: Path
) -> None:
    found, note = draw_examples(ensemble, tmp_path)
    assert note is None
    assert [each.expert for each in found] == ["low", "low", "high", "high"]
    for each in found:
        assert Path(each.value).read_bytes().startswith(b"\x89PNG")
        number = int(str(each.label).removeprefix("LABEL_"))
        assert (number < 5) == (each.expert == "low")


def test_no_examples_without_their_data(ensemble: CodedEnsemble, tmp_path: Path) -> None:
    gone = {k: b.model_copy(update={"path": str(tmp_path / "gone")})
            for k, b in ensemble.coin.datasets.items()}  # fmt: skip
    coin = ensemble.coin.model_copy(update={"datasets": gone})
    without = CodedEnsemble(
        ensemble.coded_models, ensemble.code, coin, ensemble.result, ensemble.experts
    )
    found, note = draw_examples(without, tmp_path)
    assert found == []
    assert "there is no folder" in str(note)


def test_only_what_was_uploaded_is_read(
    ensemble: CodedEnsemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    image = digits(slice(300, 301))[0]["image"]
    image.save(tmp_path / "uploads" / "a.png")
    image.save(tmp_path / "outside.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "outside.png")
    given = {"path": str(tmp_path / "uploads" / "a.png")}
    assert torch.equal(prepared(ensemble, (given,)), ensemble.preprocess(image))
    for path in ("outside.png", "uploads/../outside.png", "uploads/link.png", "uploads/no.png"):
        with pytest.raises(InputError, match="the image is not there any more: upload it again"):
            prepared(ensemble, ({"path": str(tmp_path / path)},))
    for payload in ({"path": None}, {"url": "http://127.0.0.1/a.png"}, "a.png", 3):
        with pytest.raises(InputError, match="upload it again"):
            prepared(ensemble, (payload,))


@pytest.mark.slow
def test_pairs_of_texts(tmp_path: Path) -> None:
    data = {name: {"path": str(tmp_path / name), "text": ["text", "other"]} for name in NAMED}
    recipe = make_text_world(tmp_path, datasets=data)
    for name in NAMED:
        for file in (tmp_path / name).glob("*.parquet"):
            rows = datasets.Dataset.from_parquet(str(file))
            rows.add_column("other", rows["text"][::-1]).to_parquet(file)
    ensemble = encode(Recipe.from_yaml(recipe))
    assert [each.label for each in components(ensemble)] == ["First text", "Second text"]
    given = ("the film was bright", "the film was dull")
    found, expected = prepared(ensemble, given), ensemble.preprocess(given)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(InputError, match="give both texts first"):
        prepared(ensemble, ("the film was bright", " "))
    examples, note = draw_examples(ensemble, tmp_path)
    assert note is None
    assert all(len(each.value) == 2 for each in examples)

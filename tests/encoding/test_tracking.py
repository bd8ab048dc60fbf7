"""`--log-with`: what TensorBoard reads of a distillation, and trackers that are not there."""

from pathlib import Path

import pytest
from accelerate.tracking import get_available_trackers
from builders import make_world
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coin_hf import InputError, Recipe, encode
from coin_hf.cli import main
from coin_hf.encoding.tracking import logging_accelerator, numbers


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves of a TensorBoard folder: tag -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for events in folder.rglob("events.out.tfevents.*"):
        reader = EventAccumulator(str(events.parent))
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found.setdefault(tag, {}).update({e.step: e.value for e in reader.Scalars(tag)})
    return found


def test_distillation_by_epoch_and_the_outcome(tmp_path: Path) -> None:
    settings = {"epochs": 2, "lr": 1e-4, "batch_size": 8}
    path = make_world(tmp_path, coder="distillation", distillation=settings)
    result = encode(
        Recipe.from_yaml(path), log_with="tensorboard", log_dir=tmp_path / "logs"
    ).result
    found = scalars(tmp_path / "logs")
    for entry in result.run.history or ():
        for name, value in entry["train"].items():
            logged = found[f"coded model 0/train/{name}"][entry["epoch"]]
            assert logged == pytest.approx(value, rel=1e-6)
    assert found["nda/distillation"][0] == pytest.approx(result.mean_nda["distillation"])
    assert set(found["coded model 0/train/coding_loss"]) == {0, 1, 2}


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_world(tmp_path, refine=[])
    logs = ["--log-dir", str(tmp_path / "logs")]
    monkeypatch.setattr("sys.argv", ["coin-hf", "encode", str(path), "--log-with", "aim", *logs])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    sentence = "error: the tracker 'aim' is not installed (`pip install aim`): installed are"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "coded").exists()
    monkeypatch.setattr("sys.argv", ["coin-hf", "encode", str(path), "--log-with", "all", *logs])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "nda/coin" in scalars(tmp_path / "logs")


def test_no_such_tracker() -> None:
    assert "tensorboard" in map(str, get_available_trackers())
    with pytest.raises(InputError, match=r"the tracker 'tensorbord' does not exist: installed are"):
        logging_accelerator("tensorbord", "logs", {})


def test_numbers_of_nested_values() -> None:
    values = {"train": {"nda": 99.5, "name": "x", "more": {"loss": 1}}, "seconds": 2.0}
    assert numbers(values, "a/") == {"a/train/nda": 99.5, "a/train/more/loss": 1, "a/seconds": 2.0}

"""recipes/finetune.py: real runs on small networks of timm and transformers, over a local Hub."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import digits, save_digits, save_timm, save_transformers, timm_model
from hub_server import User, serve
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coin_hf.experts.alignment import check_alignment, check_foundation, differing_statistics
from coin_hf.experts.expert import Expert, load_expert

pytestmark = [pytest.mark.slow, pytest.mark.hub]

SCRIPT = Path(__file__).parents[2] / "recipes" / "finetune.py"
QUICK = ["--epochs", "2", "--lr", "1e-3", "--batch-size", "8", "--validation", "0.25"]


def environment(**changes: str) -> dict[str, str]:
    root = str(SCRIPT.parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **changes}


def finetune(
    *options: object, launcher: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *map(str, options)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The script in this process, for what ends quickly: options -> exit code, stdout, stderr."""

    def run(*options: object) -> tuple[int, str, str]:
        monkeypatch.syspath_prepend(str(SCRIPT.parent))
        monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, options)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts of one foundation of other classes; the second one by two processes."""
    folder = tmp_path_factory.mktemp("made")
    save_digits(folder / "digits", train=120, test=10)
    save_timm(folder / "foundation", timm_model(5, num_classes=7), size=48, license="mit")
    common = ["--model", folder / "foundation", "--dataset", folder / "digits", "--image-size", 32]
    common += ["--save-start", folder / "start", *QUICK]
    common += ["--log-with", "tensorboard", "--log-dir", folder / "logs"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    low = finetune(*common, "--labels", "0,1,2,3,4", "--output", folder / "low")
    assert low.returncode == 0, low.stderr
    high = finetune(
        *common, "--labels", "5,6,7,8,9", "--limit", 40, "--output", folder / "high",
        launcher=torchrun, ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    assert high.returncode == 0, high.stderr
    (folder / "said.json").write_text(low.stdout)
    return folder


def test_training_is_logged(made: Path) -> None:
    for name in ("low", "high"):  # the second one by two processes: logged once
        reader = EventAccumulator(str(made / "logs" / name / "coin-hf")).Reload()
        record = json.loads((made / name / "training.json").read_text())
        logged = {e.step: e.value for e in reader.Scalars("held-out accuracy")}
        expected = {entry["epoch"]: entry["accuracy"] for entry in record["history"]}
        assert logged == pytest.approx(expected)
        assert [e.step for e in reader.Scalars("training loss")] == [1, 2]


@pytest.fixture(scope="module")
def experts(made: Path) -> list[Expert]:
    return [load_expert(str(made / name)) for name in ("low", "high")]


def test_the_experts_can_be_coded_together(made: Path, experts: list[Expert]) -> None:
    check_alignment(experts)
    assert differing_statistics(experts) == []  # BatchNorm was left alone
    start = load_expert(str(made / "start"))
    check_foundation(start, experts[0])
    for expert in experts:
        assert expert.num_classes == 10
        assert expert.label_names == tuple("0123456789")
        assert expert.license == "mit"
        assert expert.preprocessing.settings["input_size"] == [3, 32, 32]
        for name, value in expert.buffers.items():
            assert torch.equal(value, start.buffers[name]), name
    mine = experts[0].parameters
    moved = {name for name, v in start.parameters.items() if not torch.equal(v, mine[name])}
    assert "fc.weight" in moved
    assert "conv1.0.weight" in moved
    assert not any("bn" in name or name.startswith("conv1.1") for name in moved)


def test_the_start_is_the_foundation_with_a_seeded_head(made: Path) -> None:
    start, foundation = load_expert(str(made / "start")), timm_model(5, num_classes=7)
    for name, value in foundation.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(start.model.state_dict()[name], value), name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        foundation.reset_classifier(10)
    assert torch.equal(start.parameters["fc.weight"], foundation.get_parameter("fc.weight"))


def test_the_record_says_what_was_done(made: Path, experts: list[Expert]) -> None:
    record = json.loads((made / "low" / "training.json").read_text())
    assert json.loads((made / "said.json").read_text()) == record
    low = sum(row["label"] < 5 for row in digits(slice(0, 120)))
    assert record["held_out"] == round(0.25 * low)
    assert record["rows"] == low - record["held_out"]
    assert record["revision"].startswith("sha256:")
    assert record["dataset_revision"].startswith("sha256:")
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]
    two = json.loads((made / "high" / "training.json").read_text())
    assert (two["rows"], two["held_out"]) == (30, 10)

    card = ModelCard.load(made / "low" / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "timm"
    accuracy = record["history"][-1]["accuracy"]
    assert f"{100 * accuracy:.2f} % of {record['held_out']} rows" in card.text
    assert "| classes | 0, 1, 2, 3, 4 |" in card.text
    assert "BatchNorm | frozen" in card.text


def test_the_accuracy_is_that_of_the_rows_held_out(made: Path, experts: list[Expert]) -> None:
    for name, expert in zip(("low", "high"), experts, strict=True):
        record = json.loads((made / name / "training.json").read_text())
        sys.path.insert(0, str(SCRIPT.parent))
        try:
            from making.data import rows_of
        finally:
            sys.path.remove(str(SCRIPT.parent))
        from coin_hf.recipe.blocks import DatasetBlock

        labels = tuple(range(5)) if name == "low" else tuple(range(5, 10))
        block = DatasetBlock(path=str(made / "digits"), labels=labels)
        limit = None if name == "low" else 40
        training, held = rows_of(block, limit=limit, validation=0.25, seed=0)
        assert not set(training.positions) & set(held.positions)
        rows = [held[i] for i in range(len(held))]
        with torch.no_grad():
            x = torch.stack([expert.preprocessing(row.image) for row in rows])
            answers = expert.model(x).argmax(1).tolist()
        right = sum(answer == row.truth for answer, row in zip(answers, rows, strict=True))
        assert record["history"][-1]["accuracy"] == pytest.approx(right / len(rows))


def test_what_is_there_is_left_alone(made: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    before = {file: file.stat().st_mtime_ns for file in (made / "low").iterdir()}
    code, _, err = here("--dataset", made / "digits", "--output", made / "low")
    assert code == 0
    assert "is there already, nothing to do" in err
    assert {file: file.stat().st_mtime_ns for file in (made / "low").iterdir()} == before


def test_a_transformers_network_over_the_hub(made: Path, tmp_path: Path) -> None:
    """From a Hub repository of other classes to one of our own, which loads again."""
    vit = save_transformers(tmp_path / "vit", classes=3)
    with serve(tmp_path / "hub", {"hf_writer": User("me", write=True)}) as hub:
        hub_variables = {
            "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_writer",
            "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        publish = (
            "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('me/vit'); "
            f"api.upload_folder(repo_id='me/vit', folder_path={str(vit)!r})"
        )
        subprocess.run(
            [sys.executable, "-c", publish], env=environment(**hub_variables), check=True
        )
        done = finetune(
            "--model", "me/vit", "--dataset", made / "digits", *QUICK, "--limit", 24,
            "--output", tmp_path / "expert", "--push", "me/expert", **hub_variables,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        load = (
            "from coin_hf import load_expert; e = load_expert('me/expert'); "
            "print(e.library, e.num_classes, e.label_names[9], e.revision)"
        )
        said = subprocess.run(
            [sys.executable, "-c", load],
            env=environment(**hub_variables),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert said[:3] == ["transformers", "10", "9"]
        assert len(said[3]) == 40
        assert hub.unknown == []
    card = ModelCard.load(tmp_path / "expert" / "README.md").data
    assert (card.base_model, card.to_dict()["base_model_relation"]) == ("me/vit", "finetune")


BAD: dict[str, tuple[list[str], str]] = {
    "nothing to start from": ([], "give either --model, what to start from, or --architecture"),
    "two things": (
        ["--architecture", "test_resnet", "--model", "FOLDER/foundation"],
        "give either --model",
    ),
    "no such model": (["--model", "FOLDER/none"], "there is no folder"),
    "head that does not fit": (
        ["--model", "FOLDER/foundation", "--keep-head"],
        "knows 7 classes, the data 10",
    ),
    "share": (
        ["--model", "FOLDER/foundation", "--validation", "1"],
        "--validation must lie in [0, 1), got 1.0",
    ),
    "too few rows": (
        ["--model", "FOLDER/foundation", "--limit", "2"],
        "--validation 0.1 of 2 rows leaves one part empty",
    ),
    "no such class": (["--model", "FOLDER/foundation", "--labels", "cat"], "has no class 'cat'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str, made: Path, tmp_path: Path, here: Callable[..., tuple[int, str, str]]
) -> None:
    options, message = BAD[case]
    said = [option.replace("FOLDER", str(made)) for option in options]
    code, out, err = here("--dataset", made / "digits", "--output", tmp_path / "out", *said)
    assert (code, out) == (2, "")
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in sentence
    assert not (tmp_path / "out").exists()

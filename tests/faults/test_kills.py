"""A kill at every file operation of every command that writes: old or new, and whole."""

import hashlib
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import make_world, recipe_dict
from faults.kills import killed, operations

from coin_hf import CodedEnsemble, InputError, Recipe, encode, evaluate, make_fisher, recode
from coin_hf.comparison.compare import compare
from coin_hf.repository.folder import save_result

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts, their digits and a coded model with Fishers."""
    folder = tmp_path_factory.mktemp("start")
    make_world(folder, fisher={"save": True}, samples={"per_expert": 4})
    encode(Recipe.from_yaml(folder / "recipe.yaml")).save_pretrained(folder / "coded")
    return folder


def recoding(folder: Path) -> Callable[[], Any]:
    return lambda: recode(folder / "coded", betas=[0.7, 0.3], overwrite=True)


def recoding_elsewhere(folder: Path) -> Callable[[], Any]:
    return lambda: recode(folder / "coded", folder / "new", betas=[0.7, 0.3])


def saving(folder: Path) -> Callable[[], Any]:
    result = evaluate(folder / "coded", overrides=["evaluation.limit=20"])
    pinned = result.model_copy(update={"run": result.run.model_copy(update={"seconds": {}})})
    return lambda: save_result(folder / "coded", pinned)


def overwriting(folder: Path) -> Callable[[], Any]:
    ensemble = CodedEnsemble.from_pretrained(folder / "coded", experts=True)
    return lambda: ensemble.save_pretrained(folder / "coded", overwrite=True)


def fisher(folder: Path) -> Callable[[], Any]:
    low, place = str(folder / "low"), folder / "fishers"
    return lambda: make_fisher(low, place, datasets=[str(folder / "digits")], per_expert=4)


def resuming(folder: Path) -> Callable[[], Any]:
    recipe = Recipe.from_dict(recipe_dict(folder, samples={"per_expert": 4}))
    return lambda: encode(recipe, resume=folder / "partial")


def comparing(folder: Path) -> Callable[[], Any]:
    changes = {
        "output": str(folder / "compared"),
        "compare": {"coders": ["averaging"], "seeds": [0]},
    }
    recipe = Recipe.from_dict(recipe_dict(folder, samples={"per_expert": 4}, **changes))
    return lambda: compare(recipe)


COMMANDS = {
    "recode in place": (recoding, "coded"),
    "recode elsewhere": (recoding_elsewhere, "new"),
    "evaluate --save": (saving, "coded"),
    "save over": (overwriting, "coded"),
    "fisher": (fisher, "fishers"),
    "encode --resume": (resuming, "partial"),
    "compare": (comparing, "compared"),
}
TIMED = {"result.json", "README.md"}
"""Files that hold wall times, which differ from run to run."""


def content(folder: Path) -> dict[str, str]:
    """The hash of every file of an output, but for wall times and rows that hold them."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMED and path.parent.name != "rows"
    }


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.suffix != ".lock"]


def fresh(start: Path, folder: Path) -> Path:
    """A copy of the start at one place, so that recorded paths and hashes are the same."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    return folder


def whole(folder: Path, output: Path, before: dict[str, str] | None) -> None:
    """After a kill an output that is a coded model is read, or refused in one sentence."""
    if before is not None:
        assert output.is_dir()
    if (output / "coin.json").is_file():
        try:
            coded = CodedEnsemble.from_pretrained(output)
        except InputError as error:
            raise AssertionError(f"not whole: {error}") from error
        assert coded.coin.calibration == coded.result.calibration


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_every_operation(name: str, start: Path, tmp_path: Path) -> None:
    make, output = COMMANDS[name]
    place = tmp_path / "w"
    folder = fresh(start, place)
    count = operations(place, make(folder))
    assert count >= 3
    expected = content(folder / output)
    deaths = 0
    for at in range(count):
        folder = fresh(start, place)
        before = content(folder / output) if (folder / output).is_dir() else None
        command = make(folder)
        deaths += killed(place, command, at)
        whole(folder, folder / output, before)
        if (folder / output).is_dir() and content(folder / output) == expected:
            continue  # the new one is there; what is left beside it, the next writer removes
        make(folder)()  # from what the kill left
        assert content(folder / output) == expected, (name, at)
        assert hidden(folder) == [], (name, at)
    assert deaths >= count - 1


def test_a_request_to_end_leaves_no_draft(start: Path, tmp_path: Path) -> None:
    """SIGTERM, as schedulers send it: the command line ends in order, at any operation."""
    import coin_hf.cli.app as app

    folder = fresh(start, tmp_path / "w")

    def command() -> None:
        signal.signal(signal.SIGTERM, app._stop)
        with suppress(SystemExit):
            recoding(folder)()

    count = operations(folder, command)
    for at in range(0, count, 3):
        killed(fresh(start, tmp_path / "w"), command, at, signal.SIGTERM)
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert left == [], at
        assert CodedEnsemble.from_pretrained(folder / "coded").names == ["low", "high"]

"""A part of the damage in `fuzz.py`: success or one sentence, in bounded time and memory."""

from pathlib import Path

import pytest
from faults.fuzz import FORMATS, Outcome, Target, run, run_images, targets

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


def test_every_file_that_is_read(files: dict[str, Target]) -> None:
    found = {name: run(target, 40, seed=1) for name, target in files.items()}
    assert {name: each.wrong for name, each in found.items() if each.wrong} == {}
    assert all(each.read + each.sentences == 40 for each in found.values())
    assert sum(each.read for each in found.values()) > 50  # the damage is not all fatal
    assert sum(each.sentences for each in found.values()) > 200


def test_every_image_format() -> None:
    found = run_images(640, seed=1)
    assert found.keys() == FORMATS.keys()
    assert {name: each.wrong for name, each in found.items() if each.wrong} == {}


def test_a_fault_would_be_seen(tmp_path: Path) -> None:
    """The suite can fail: a traceback is told, and the file restored."""
    file = tmp_path / "a.json"
    file.write_text('{"a": 1, "b": [1, 2]}')

    def broken() -> None:
        assert '"a"' in file.read_text(errors="replace")

    outcome: Outcome = run(Target("a", file, broken, 0), 100)
    assert 0 < len(outcome.wrong) < 100
    assert file.read_text() == '{"a": 1, "b": [1, 2]}'

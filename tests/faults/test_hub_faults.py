"""A fault of the Hub at each request of a download and of a push: success, or one sentence.

What is read is right to the byte, and what is published is there whole or not at all.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import make_world
from faults.proxy import FAULTS
from hub_clients import TOKENS, WRITER, environment, python
from hub_server import Hub, serve

from coin_hf import Recipe, encode

pytestmark = [pytest.mark.slow, pytest.mark.hub]

CLIENT = """
import contextlib, hashlib, io, shutil, tempfile, traceback, warnings
from pathlib import Path
sys.path.insert(0, said["tests"])
from faults.proxy import proxy
with proxy(said["hub"], said["storage"]) as faulty:
    os.environ["HF_ENDPOINT"] = faulty.endpoint
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import disable_progress_bars
    disable_progress_bars()
    from coin_hf import CodedEnsemble, InputError, push_folder
    import coin_hf.hub.sentences as sentences
    sentences.WAITS = (0.05, 0.1)
    warnings.simplefilter("ignore")
    number = 0

    def load():
        with tempfile.TemporaryDirectory() as cache:
            constants.HF_HUB_CACHE = cache
            coded = CodedEnsemble.from_pretrained("me/coded")
            state = coded.model.state_dict()
            content = b"".join(value.numpy().tobytes() for value in state.values())
            return hashlib.sha256(content).hexdigest()

    def push():
        global number
        number += 1
        push_folder(Path(said["coded"]), f"me/pushed-{number}")
        return "pushed"

    def attempt(work, fault, at, always=False):
        faulty.set(fault, at, always=always)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return work(), ""
        except InputError as error:
            return "sentence", str(error)
        except BaseException as error:
            return "traceback", "".join(traceback.format_exception(error))[-800:]
        finally:
            faulty.set(None)

    report = {"right": load(), "runs": []}
    for name, work in (("load", load), ("push", push)):
        faulty.set(None)
        work()
        count = faulty.seen
        report[name] = count
        for fault in said["faults"]:
            for at in range(count):
                outcome = attempt(work, fault, at)
                report["runs"].append([name, fault, at, *outcome, number])
        for fault in ("503", "closed"):
            report["runs"].append([name, fault, -1, *attempt(work, fault, 0, True), number])
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub"), TOKENS) as running:
        yield running


@pytest.fixture(scope="module")
def report(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("made")
    make_world(folder, samples={"per_expert": 4})
    encode(Recipe.from_yaml(folder / "recipe.yaml")).save_pretrained(folder / "coded")
    home = tmp_path_factory.mktemp("home")
    env = environment(hub.endpoint, home, WRITER)
    script = "from coin_hf import push_folder\nfrom pathlib import Path\n"
    python(f"{script}push_folder(Path(said), 'me/coded')", str(folder / "coded"), env)
    said = {
        "tests": str(Path(__file__).parents[1]),
        "hub": hub.endpoint,
        "storage": hub.storage,
        "coded": str(folder / "coded"),
        "faults": FAULTS,
    }
    found: dict[str, Any] = python(CLIENT, said, env)
    return found


def test_each_fault_at_each_request_is_success_or_a_sentence(report: dict[str, Any]) -> None:
    runs = report["runs"]
    wrong = [run for run in runs if run[3] == "traceback"]
    assert wrong == [], f"{len(wrong)} of {len(runs)}: {wrong[0]}"
    assert report["load"] > 4
    assert report["push"] > 4
    assert len(runs) == len(FAULTS) * (report["load"] + report["push"]) + 4
    outcomes = Counter(run[3] == "sentence" for run in runs)
    assert outcomes[True] > 20
    assert outcomes[False] > 20


def test_what_is_read_is_right(report: dict[str, Any]) -> None:
    for name, fault, at, outcome, text, _ in report["runs"]:
        if name == "load":
            assert outcome in ("sentence", report["right"]), (fault, at, outcome)
            assert len(text) < 1000


def test_a_short_fault_is_waited_for_and_a_long_one_is_not(report: dict[str, Any]) -> None:
    found = {(name, fault, at): outcome for name, fault, at, outcome, *_ in report["runs"]}
    for name in ("load", "push"):
        assert found[name, "503", -1] == found[name, "closed", -1] == "sentence"
        for fault in ("429", "503"):
            assert found[name, fault, 0] != "sentence", (name, fault)


def test_a_failed_push_leaves_nothing_half_written(hub: Hub, report: dict[str, Any]) -> None:
    for name, fault, at, outcome, text, number in report["runs"]:
        repo = hub.repos.get(("models", f"me/pushed-{number}"))
        if name != "push" or repo is None:
            assert name != "push" or outcome == "sentence", (fault, at)
            continue
        head = set(repo.commits[repo.branches["main"]])
        if outcome == "pushed":
            assert {"coin.json", "model.safetensors", "README.md"} <= head, (fault, at)
        else:  # the fault took the answer to a commit that was made, or to the repository's removal
            assert head <= {".gitattributes"} or "model.safetensors" in head, (fault, at, text)

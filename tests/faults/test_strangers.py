"""A stranger's repository can be wrong, and no more: nothing of it runs or leads out."""

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import make_world, recipe_dict, save_timm, timm_model
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coin_hf import CodedEnsemble, InputError, Recipe, encode, load_expert, recode
from coin_hf.hub import sentences as hub_sentences
from coin_hf.hub.client import pin
from coin_hf.hub.hashes import check_downloads
from coin_hf.hub.sentences import patiently
from coin_hf.networks.building import Bounded, TooLargeError
from coin_hf.reports.card import model_card
from coin_hf.repository.fisher_files import write_fisher
from coin_hf.repository.folder import check_output
from coin_hf.repository.locks import only_writer
from coin_hf.repository.push import _files, check_push

pytestmark = pytest.mark.filterwarnings("ignore:Creating a tensor")
SHA = "1" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts, their digits and a coded model with Fishers."""
    folder = tmp_path_factory.mktemp("made")
    make_world(folder, fisher={"save": True}, samples={"per_expert": 4})
    encode(Recipe.from_yaml(folder / "recipe.yaml")).save_pretrained(folder / "coded")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "w"))


def configure(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


class Ran:
    """Unpickling this writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_nothing_of_a_repository_is_unpickled(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Ran(ran)))
    pickle.loads((tmp_path / "evil.pth").read_bytes())  # it would
    ran.rmdir()
    expert = save_timm(tmp_path / "e", timm_model(0))
    shutil.copyfile(tmp_path / "evil.pth", expert / "pytorch_model.bin")
    load_expert(str(expert))
    for name in (
        "checkpoint_path",
        "pretrained_cfg_overlay",
        "cache_dir",
        "scriptable",
        "nonsense",
    ):
        configure(expert, model_args={name: str(tmp_path / "evil.pth")})
        with pytest.raises(InputError, match=f"gives '{name}', which a repository may not set"):
            load_expert(str(expert))
    configure(expert, model_args={"drop_rate": 0.1})
    source = {"file": str(tmp_path / "evil.pth"), "url": "file:///etc/passwd", "custom_load": True}
    configure(expert, pretrained_cfg=source)
    load_expert(str(expert))
    (expert / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds only pickles"):
        load_expert(str(expert))
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["hf-hub:evil/x", "local-dir:/tmp", "timm/resnet50.a1", "../x", "resnet18\n", "", "a/b"]
)
def test_an_architecture_is_a_name_of_the_registry(tmp_path: Path, name: str) -> None:
    expert = save_timm(tmp_path / "e", timm_model(0))
    configure(expert, architecture=name)
    with pytest.raises(InputError, match=r"has no architecture|names no timm"):
        load_expert(str(expert))


@pytest.mark.slow
def test_a_network_is_bounded_by_its_weights(tmp_path: Path) -> None:
    expert = save_timm(tmp_path / "e", timm_model(0))
    configure(expert, num_classes=8_000_000)
    with pytest.raises(InputError, match="far larger than its weights"):
        load_expert(str(expert))
    for call in (
        lambda: torch.empty(1 << 20, 1 << 10),
        lambda: torch.zeros(size=(1 << 20, 1 << 10)),
        lambda: torch.arange(1 << 30),
        lambda: torch.arange(1, 1 << 30, step=2),
        lambda: torch.linspace(0, 1, steps=1 << 30),
        lambda: torch.ones(1 << 15)[:, None] * torch.ones(1 << 15),
        lambda: timm.create_model("vit_tiny_patch16_224", depth=200),
    ):
        with pytest.raises(TooLargeError), Bounded(parameters=1, elements=1):
            call()
    with Bounded(parameters=160, elements=11_000_000) as bound:
        timm.create_model("resnet18")
        assert torch.linspace(0, 1e12, 5).shape == (5,)
        assert torch.arange(1e12, 1e12 + 3).shape == (3,)
        assert torch.arange(0, 1 << 40, 1 << 38).tolist()[1] == 1 << 38
    assert bound.seen == len(list(timm.create_model("resnet18").parameters()))
    torch.empty(1 << 15, 1 << 13)  # no longer bounded


def cached(folder: Path, repository: Path, repo: str) -> Path:
    """Put a repository into the Hub's cache, as a download does."""
    place = folder / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / SHA
    for part in ("blobs", "refs"):
        (place / part).mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    for path in repository.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            blob = place / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = snapshot / path.relative_to(repository)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return snapshot


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc", "../../../../low", "~/low", "/etc"])
def test_a_repository_of_the_hub_leads_to_no_folder(
    folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("coin.json", "result.json"):
        said = json.loads((folder / "coded" / name).read_text())
        said["experts"][0] |= {"model": place, "revision": "sha256:" + "0" * 64}
        (folder / "coded" / name).write_text(json.dumps(said))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tmp_path / "cache", folder / "coded", "evil/coded")
    with pytest.raises(InputError, match="of this machine as an expert or dataset, which a repo"):
        CodedEnsemble.from_pretrained("evil/coded", experts=True)


@pytest.mark.parametrize("revision", ["../../../x", "/etc/passwd", "a/../../b", "", "-x", "a\nb"])
def test_a_revision_is_a_name(
    tmp_path: Path, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"is no revision of|not in the local cache"):
        pin("me/x", revision)
    place = tmp_path / "models--me--x" / "refs"
    place.mkdir(parents=True)
    (place / "main").write_text("what a server chose")
    with pytest.raises(InputError, match="the commit of the model 'me/x' is given as 'what a"):
        pin("me/x", None)


def test_a_download_is_what_the_hub_says(folder: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "cache", folder / "coded", "me/coded")
    check_downloads(snapshot, "model 'me/coded'")
    blob = (snapshot / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1000] ^= 64
    blob.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"model\.safetensors of the .* is not what the Hub holds"):
        check_downloads(snapshot, "model 'me/coded'")
    blob.unlink()
    (snapshot / "model.safetensors").unlink()
    small = snapshot.parents[1] / "blobs" / "ce013625030ba8dba906f756967f9e9ca394464a"
    small.write_bytes(b"hello\n")  # by git's own hash
    (snapshot / "notes.txt").symlink_to(small)
    check_downloads(snapshot, "model 'me/coded'")
    small.write_bytes(b"hullo\n")
    with pytest.raises(InputError, match=r"notes\.txt"):
        check_downloads(snapshot, "model 'me/coded'")
    check_downloads(snapshot, "model 'me/coded'", ["*.json"])  # nobody reads the notes


def test_a_push_publishes_what_coin_hf_writes(folder: Path) -> None:
    coded = folder / "coded"
    (folder / "id_rsa").write_text("PRIVATE KEY")
    (coded / "wandb").mkdir()
    (coded / "wandb" / "key.txt").write_text("SECRET")
    (coded / "notes.txt").symlink_to(folder / "id_rsa")
    with pytest.warns(UserWarning, match=r"notes\.txt, wandb/key\.txt in .* and are not pushed"):
        names = set(_files(coded))
    assert names == {
        "README.md", "coin.json", "result.json", "nda.png", "config.json", "model.safetensors",
        "fisher/low.safetensors", "fisher/high.safetensors", "erasure.svg",
    }  # fmt: skip
    (coded / "config.json").unlink()
    (coded / "config.json").symlink_to(folder / "id_rsa")
    with pytest.raises(InputError, match=r"config\.json is a link to .*id_rsa, outside"):
        _files(coded)


NAMES = ["a\n\n# b\n", "---\nlicense: mit\n---", "<script>x</script>", "a|b", "```\nx\n```", "`x`",
         "![x](https://evil/x.png)", "\u202eevil", "\x00", "[x](y)"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_in_cards(made: Path, name: str) -> None:
    said = json.loads((made / "coded/result.json").read_text())
    text = json.dumps(said).replace('"low"', json.dumps(name))
    card = model_card(json.loads(text), "me/x")
    plain = model_card(said, "me/x")
    assert card.text.count("\n") == plain.text.count("\n")
    for special in ("<script", "](", "![", "\u202e", "\x00"):
        assert card.text.count(special) == plain.text.count(special)
    assert card.text.count("```") == 0
    assert card.data.to_dict().get("license") == plain.data.to_dict().get("license")


@pytest.mark.parametrize("name", ["a\nb", "\x00", "\u202eb", " "])
def test_control_characters_are_refused_in_recipes(tmp_path: Path, name: str) -> None:
    recipe = recipe_dict(tmp_path)
    recipe["experts"][0]["name"] = name
    with pytest.raises(InputError, match="is empty or holds control characters"):
        Recipe.from_dict(recipe)


def test_what_can_be_known_before_is_said_before(tmp_path: Path) -> None:
    for output in ("x" * 300, "\0x", str(tmp_path / ("x" * 250))):
        with pytest.raises(InputError, match="the name"):
            check_output(Path(output), overwrite=False)
    recipe = recipe_dict(tmp_path, fisher={"save": True})
    recipe["experts"][0]["name"] = "手書き数字を見分ける専門家ネットワーク第一号機その一"
    with pytest.raises(InputError, match="has too long a name for the file of its Fisher"):
        Recipe.from_dict(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["lacks one", "empty", "booleans", "not a number"])
def test_recoding_takes_whole_fishers_and_writes_finite_numbers(folder: Path, damage: str) -> None:
    for name in ("low", "high"):
        path = folder / "coded/fisher" / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        values = load_file(path)
        if damage == "lacks one":
            values.pop("fc.weight")
        elif damage == "empty":
            values.clear()
        elif damage == "booleans":
            values = {key: value > 0 for key, value in values.items()}
        else:
            values["fc.weight"][0] = float("nan")
        save_file(values, path, metadata=metadata)
    with pytest.raises(InputError, match=r"parameters, not of|not floating-point|not finite"):
        recode(folder / "coded", folder / "out", betas=[0.5, 0.5])
    assert not (folder / "out").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_equal_fishers_are_equal_files_with_the_umasks_mode(tmp_path: Path) -> None:
    metadata = dict.fromkeys(("format", "model", "revision", "tied", "versions"), "x")
    contents = set()
    for i in range(8):
        write_fisher(tmp_path / f"{i}.safetensors", {"a": torch.ones(3)}, metadata)
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1
    assert load_file(tmp_path / "0.safetensors")["a"].tolist() == [1, 1, 1]


def test_files_have_the_mode_that_the_umask_says(made: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in (made / "coded").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def _hold(place: Path, ready: Any) -> None:
    with only_writer(place):
        ready.set()
        time.sleep(60)


def test_a_second_writer_says_so_and_a_killed_one_frees_the_place(tmp_path: Path) -> None:
    ready = multiprocessing.Event()
    other = multiprocessing.Process(target=_hold, args=(tmp_path / "out", ready))
    other.start()
    assert ready.wait(30)
    said = f"is being written by process {other.pid} on "
    with pytest.raises(InputError, match=said), only_writer(tmp_path / "out"):
        raise AssertionError
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with only_writer(tmp_path / "out"), only_writer(tmp_path / "out"):  # its own, twice
        assert (tmp_path / ".out.lock").exists()
    assert not (tmp_path / ".out.lock").exists()


def test_a_push_that_cannot_be_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nothing can be pushed to 'me/x' offline"):
        check_push("me/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="is neither an existing folder nor a Hub id"):
        check_push("a/b/c")
    monkeypatch.setattr("coin_hf.repository.push.get_token", lambda: None)
    with pytest.raises(InputError, match="no token to push to 'me/x' with: log in"):
        check_push("me/x")


@pytest.mark.slow
def test_a_second_encode_into_one_output_ends(folder: Path) -> None:
    shutil.rmtree(folder / "coded")
    with only_writer(folder / "coded"):
        done = subprocess.run(
            [sys.executable, "-m", "coin_hf", "encode", str(folder / "recipe.yaml"), "-o",
             f"output={folder / 'coded'}"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "is being written by process" in done.stderr


class Busy(Exception):
    """An answer of the Hub."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(status)
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


def test_a_busy_hub_is_asked_again_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(hub_sentences.time, "sleep", waited.append)

    def answers(*errors: Exception) -> Any:
        left = list(errors)

        def call() -> str:
            if left:
                raise left.pop(0)
            return "here"

        return call

    with pytest.warns(UserWarning, match=r"the Hub is busy \(429\): trying again in [32] s"):
        found = patiently(answers(Busy(429, **{"Retry-After": "3"}), Busy(429)))
    assert (found, waited) == ("here", [3.0, 2.0])
    for error in (Busy(500), Busy(451), Busy(429, **{"Retry-After": "3600"}), ValueError("x")):
        with pytest.raises(type(error)):
            patiently(answers(error))
    waited.clear()
    with pytest.warns(UserWarning, match="is busy"), pytest.raises(Busy):
        patiently(answers(*[Busy(503)] * 9))
    assert waited == [1.0, 2.0, 4.0, 8.0]

"""The whole path over a Hub: experts and data pushed, encoded, pushed, loaded by three libraries.

The clients are real and run in processes of their own, since `HF_ENDPOINT` is read when they are
imported. Starting one takes seconds, so each does several things and reports them as JSON.
"""

import base64
import io
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import digits, make_world, save_timm, save_transformers, timm_model
from hub_clients import (
    DATA,
    HOARDER,
    NAMES,
    PUBLISH,
    READER,
    SHA,
    STRANGER,
    TOKENS,
    WRITER,
    coin_hf,
    environment,
    python,
)
from hub_server import Hub, serve
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.hub]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub"), TOKENS) as running:
        running.full.add("hoarder")
        yield running
    assert running.unknown == [], "a client asked for what the server does not speak"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts and data on disk, as their makers have them before anything is pushed."""
    folder = tmp_path_factory.mktemp("makers")
    make_world(folder)
    for name in ("low", "high"):
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**config, "label_names": NAMES}))
        (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n# expert\n")
    for seed, name in enumerate(("vit-low", "vit-high")):
        save_transformers(folder / name, seed)
    (folder / "pickled").mkdir()
    shutil.copy(folder / "low" / "config.json", folder / "pickled")
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04not for reading")
    shutil.copytree(folder / "low", folder / "hidden")
    return folder


@pytest.fixture(scope="module")
def published(hub: Hub, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The commits of the experts and the dataset, once they are on the Hub."""
    names = ("low", "high", "vit-low", "vit-high", "pickled", "hidden")
    said = {"folder": str(folder), "models": {f"me/{n}": n == "hidden" for n in names}}
    said["classes"] = NAMES
    env = environment(hub.endpoint, tmp_path_factory.mktemp("maker-home"), WRITER)
    return python(PUBLISH, said, env)


def recipe(path: Path, experts: tuple[str, str] = ("me/low", "me/high"), **changes: Any) -> str:
    """Write a recipe on Hub ids and return its path."""
    data = {
        "experts": [
            {"model": experts[0], "dataset": "low"},
            {"model": experts[1], "dataset": "high"},
        ],
        "datasets": DATA,
        "samples": {"per_expert": 8},
        "lam": 0.01,
        "fisher": {"estimator": "exact"},
        **changes,
    }
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of someone who encodes: recipes, outputs and the Hub's cache."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def encoded(hub: Hub, published: dict[str, str], user: Path) -> subprocess.CompletedProcess[str]:
    """`coin-hf encode recipe.yaml --push`, which made me/coded."""
    recipe(user / "recipe.yaml", output="coded", hub={"repo": "me/coded"})
    env = environment(hub.endpoint, user / "home", WRITER)
    done = coin_hf("encode", "recipe.yaml", "--push", env=env, cwd=user)
    assert done.returncode == 0, done.stderr
    return done


# -- encoding and pushing --------------------------------------------------------------------


def test_encode_pushes_one_commit_with_everything(
    hub: Hub, encoded: subprocess.CompletedProcess[str], user: Path
) -> None:
    repo = hub.repo("me/coded")
    assert list(repo.messages.values()) == ["initial commit", "Add coded model"]
    assert f"pushed to {hub.endpoint}/me/coded/commit/{repo.branches['main']}" in encoded.stderr
    files = {p.name for p in (user / "coded").iterdir()}
    assert files == set(repo.commits[repo.branches["main"]]) - {".gitattributes"}
    assert files == {
        "README.md",
        "coin.json",
        "config.json",
        "erasure.svg",
        "model.safetensors",
        "nda.png",
        "result.json",
    }
    for name in files - {"README.md"}:
        assert hub.read("me/coded", name) == (user / "coded" / name).read_bytes()


def test_coin_json_pins_the_commits_of_experts_and_data(
    hub: Hub, encoded: subprocess.CompletedProcess[str], published: dict[str, str]
) -> None:
    coin = json.loads(hub.read("me/coded", "coin.json"))
    assert [(e["model"], e["revision"]) for e in coin["experts"]] == [
        ("me/low", published["me/low"]),
        ("me/high", published["me/high"]),
    ]
    for block in coin["datasets"].values():
        assert (block["path"], block["revision"]) == ("me/digits", published["me/digits"])


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """All that was measured, by what it is."""
    return {
        f"{erasure['missing']}, {method}, {measure}": value
        for erasure in result["erasures"]
        for method, scores in erasure["scores"].items()
        for measure, value in scores.items()
        if value is not None
    }


# -- one process, many command lines ----------------------------------------------------------

COMMANDS = """
import contextlib, io, traceback
from coin_hf.cli import main

for name, command in said.items():
    os.environ.pop("HF_TOKEN", None)
    if command["token"]:
        os.environ["HF_TOKEN"] = command["token"]
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["coin-hf", *command["args"]]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            code = error.code
        except Exception:
            code = traceback.format_exc()
    report[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
"""


@pytest.fixture(scope="module")
def commands(
    hub: Hub, encoded: subprocess.CompletedProcess[str], user: Path
) -> dict[str, dict[str, Any]]:
    """What a number of command lines answer, run one after the other."""

    def encode(name: str, *args: str, token: str | None = WRITER, **changes: Any) -> dict[str, Any]:
        path = recipe(user / f"{name}.yaml", **changes)
        return {"args": ["encode", path, *args], "token": token}

    def push(*args: str, token: str | None = WRITER) -> dict[str, Any]:
        return {"args": ["push", str(user / "coded"), *args], "token": token}

    foreign = user / "foreign-licence"
    shutil.copytree(user / "coded", foreign)
    result = json.loads((foreign / "result.json").read_text())
    for expert in result["experts"]:
        expert["license"] = "my own"
    (foreign / "result.json").write_text(json.dumps(result))
    streamed = {key: {**block, "streaming": True} for key, block in DATA.items()}
    main = {"revision": "main"}
    out = str(user / "refused")
    said = {
        "dry-run": encode(
            "dry-run",
            "--dry-run",
            token=None,
            output=out,
            datasets={key: {**block, **main} for key, block in DATA.items()},
        ),
        "streaming": encode(
            "streaming", output=str(user / "streamed"), datasets=streamed, lam=0.5, token=None
        ),
        "evaluate": {"args": ["evaluate", "me/coded", "--json"], "token": None},
        "vit": encode(
            "vit", "--push", experts=("me/vit-low", "me/vit-high"), hub={"repo": "me/coded-vit"}
        ),
        "private": push("me/private", "--private", "--message", "For us alone"),
        "branch": push("me/coded-by-branch", "--revision", "trial"),
        "branch-again": {
            "args": ["push", str(user / "streamed"), "me/coded-by-branch", "--revision", "trial"],
            "token": WRITER,
        },
        "secret-expert": encode(
            "secret", "--dry-run", experts=("me/hidden", "me/high"), token=READER, output=out
        ),
        "pull-request": push("me/coded", "--create-pr"),
        "read-token": push("me/by-a-reader", token=READER),
        "bad-token": push("me/by-nobody", token="hf_wrong"),
        "no-token": push("me/by-nobody", token=None),
        "others": push("you/not-mine"),
        "licence": {"args": ["push", str(foreign), "me/own-licence"], "token": WRITER},
        "bad-name": push("me/a--b..c"),
        "not-coded": {"args": ["push", str(user / "home"), "me/x"], "token": WRITER},
        "encode-others": encode(
            "encode-others", "--push", output=out, hub={"repo": "you/not-mine"}
        ),
        "full": encode(
            "full",
            "--push",
            output=str(user / "kept"),
            hub={"repo": "hoarder/too-much"},
            lam=2.0,
            token=HOARDER,
        ),
        "encode-bad-token": encode("encode-bad-token", token="hf_wrong", output=out),
        "missing-expert": encode("missing-expert", experts=("me/nothing", "me/high"), output=out),
        "hidden-expert": encode(
            "hidden-expert", experts=("me/hidden", "me/high"), token=STRANGER, output=out
        ),
        "hidden-data": encode(
            "hidden-data",
            datasets={key: {**block, "path": "me/secret-digits"} for key, block in DATA.items()},
            token=None,
            output=out,
        ),
        "missing-data": encode(
            "missing-data",
            datasets={**DATA, "low": {"path": "me/no-digits"}},
            output=out,
        ),
        "missing-revision": {
            "args": [*encode("rev", output=out)["args"], "-o", "experts.1.revision=v9"],
            "token": WRITER,
        },
        "missing-data-revision": {
            "args": [*encode("data-rev", output=out)["args"], "-o", "datasets.low.revision=v9"],
            "token": WRITER,
        },
        "missing-split": {
            "args": [*encode("split", output=out)["args"], "-o", "datasets.low.split=valid"],
            "token": WRITER,
        },
        "pickle": encode("pickle", experts=("me/pickled", "me/high"), output=out),
        "evaluate-missing": {"args": ["evaluate", "me/uncoded"], "token": WRITER},
        "evaluate-expert": {"args": ["evaluate", "me/low"], "token": WRITER},
    }
    return python(COMMANDS, said, environment(hub.endpoint, user / "home"))


def test_dry_run_prints_the_recipe_with_shas_and_writes_nothing(
    commands: dict[str, dict[str, Any]], published: dict[str, str], user: Path
) -> None:
    answer = commands["dry-run"]
    assert answer["code"] == 0, answer["err"]
    printed = yaml.safe_load(answer["out"])
    assert [e["revision"] for e in printed["experts"]] == [
        published["me/low"],
        published["me/high"],
    ]
    assert {d["revision"] for d in printed["datasets"].values()} == {published["me/digits"]}
    assert all(SHA.fullmatch(published[name]) for name in ("me/low", "me/high", "me/digits"))
    assert not (user / "refused").exists()


def test_a_streamed_dataset_gives_a_coded_model_too(
    commands: dict[str, dict[str, Any]], published: dict[str, str], user: Path
) -> None:
    assert commands["streaming"]["code"] == 0, commands["streaming"]["err"]
    coin = json.loads((user / "streamed" / "coin.json").read_text())
    assert all(d["streaming"] for d in coin["datasets"].values())
    assert {d["revision"] for d in coin["datasets"].values()} == {published["me/digits"]}
    whole = json.loads((user / "coded" / "result.json").read_text())
    streamed = json.loads((user / "streamed" / "result.json").read_text())
    assert [e["points"] for e in streamed["erasures"]] == [e["points"] for e in whole["erasures"]]


def test_evaluate_from_the_hub_repeats_what_encode_measured(
    hub: Hub, commands: dict[str, dict[str, Any]]
) -> None:
    assert commands["evaluate"]["code"] == 0, commands["evaluate"]["err"]
    measured = json.loads(commands["evaluate"]["out"])
    pushed = json.loads(hub.read("me/coded", "result.json"))
    assert measured["mean_nda"] == pushed["mean_nda"]
    assert numbers(measured) == pytest.approx(numbers(pushed), rel=1e-6)


def test_a_private_push_is_seen_by_its_owner_alone(
    hub: Hub, commands: dict[str, dict[str, Any]], user: Path
) -> None:
    assert commands["private"]["code"] == 0, commands["private"]["err"]
    repo = hub.repo("me/private")
    assert repo.private
    assert not hub.repo("me/coded").private
    assert repo.messages[repo.branches["main"]] == "For us alone"
    assert commands["private"]["out"].strip().endswith(repo.branches["main"])
    # The card's code blocks name the repository that it lies in.
    assert b"me/private" in hub.read("me/private", "README.md")
    assert b"your-name/coded" in (user / "coded" / "README.md").read_bytes()


def test_a_branch_is_made_for_a_push_and_used_again(
    hub: Hub, commands: dict[str, dict[str, Any]]
) -> None:
    assert commands["branch"]["code"] == 0, commands["branch"]["err"]
    assert commands["branch-again"]["code"] == 0, commands["branch-again"]["err"]
    repo = hub.repo("me/coded-by-branch")
    assert set(repo.commits[repo.branches["main"]]) == {".gitattributes"}
    assert json.loads(hub.read("me/coded-by-branch", "coin.json", "trial"))["lam"] == 0.5
    first = SHA.findall(commands["branch"]["out"])[0]
    assert json.loads(hub.read("me/coded-by-branch", "coin.json", first))["lam"] == 0.01


ENDPOINT = """
sys.modules["coin_hf"] = None
from huggingface_hub import snapshot_download
folder = snapshot_download("me/endpoints")
sys.path.insert(0, folder)
from handler import EndpointHandler
for name in ("low", "coded"):
    os.environ["COIN_NETWORK"] = name
    report[name] = EndpointHandler(folder)({"inputs": said["image"]})
report["requirements"] = open(folder + "/requirements.txt").read()
"""


def test_an_endpoint_serves_an_expert_from_its_own_repository(
    hub: Hub, encoded: Any, user: Path, tmp_path: Path
) -> None:
    env = environment(hub.endpoint, user / "home", WRITER)
    done = coin_hf("push", "coded", "me/endpoints", "--handler", env=env, cwd=user)
    assert done.returncode == 0, done.stderr
    assert "handler.py" not in hub.repo("me/coded").commits[hub.repo("me/coded").branches["main"]]
    stream = io.BytesIO()
    digits(slice(0, 1))[0]["image"].save(stream, "PNG")
    said = {"image": base64.b64encode(stream.getvalue()).decode()}
    found = python(ENDPOINT, said, environment(hub.endpoint, tmp_path / "home", WRITER))
    for name in ("low", "coded"):
        assert {each["label"] for each in found[name]} == set(NAMES)
        assert sum(each["score"] for each in found[name]) == pytest.approx(1)
    assert found["low"] != found["coded"]
    assert "timm>=" in found["requirements"]


def test_a_private_expert_is_found_with_a_token(
    commands: dict[str, dict[str, Any]], published: dict[str, str]
) -> None:
    assert commands["secret-expert"]["code"] == 0, commands["secret-expert"]["err"]
    printed = yaml.safe_load(commands["secret-expert"]["out"])
    assert printed["experts"][0]["revision"] == published["me/hidden"]


REFUSALS = {
    "pull-request": r"the Hub refused access to the model 'me/coded' \(403\): .* \(Pull requests"
    r" are disabled for this repository\)",
    "read-token": r"the Hub refused access to the model 'me/by-a-reader' \(403\): .*token that may"
    r" write",
    "bad-token": r"the Hub refused access to the model 'me/by-nobody' \(401\): .*Invalid",
    "no-token": r"the Hub refused access to the model 'me/by-nobody' \(401\): log in with",
    "others": r"the Hub refused access to the model 'you/not-mine' \(403\): .*rights to write",
    "licence": r"the Hub refuses the card of 'me/own-licence': .*\"license\" must be one of",
    "bad-name": r"'me/a--b\.\.c' is neither an existing folder nor a Hub id",
    "not-coded": r"is not a coded model \(it has no coin\.json\): make one with `coin-hf encode",
    "encode-others": r"the token of 'me' may not write to 'you/not-mine': log in by `hf auth",
    "encode-bad-token": r"the Hub refused access to the model 'me/low' \(401\): .*Invalid cred",
    "missing-expert": r"there is no model 'me/nothing' on the Hub, nor a folder of that name",
    "hidden-expert": r"there is no model 'me/hidden' on the Hub, .*log in .*if it is private",
    "hidden-data": r"there is no dataset 'me/secret-digits' on the Hub, .*if it is private",
    "missing-data": r"there is no dataset 'me/no-digits' on the Hub, nor a folder of that name",
    "missing-revision": r"the model 'me/high' has no revision 'v9': give an existing branch, tag",
    "missing-data-revision": r"the dataset 'me/digits' has no revision 'v9': give an existing",
    "missing-split": r"dataset 'low' \(me/digits, split 'valid'\) cannot be opened: .*valid",
    "pickle": r"expert 'pickled' holds no model\.safetensors: .* a pickle can run code; convert it",
    "evaluate-missing": r"there is no model 'me/uncoded' on the Hub",
    "evaluate-expert": r"'me/low' is not a coded model \(it has no coin\.json\)",
    "full": r"the Hub refused access to the model 'hoarder/too-much' \(403\): .*Storage limit",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_sentence_and_exit_code_2(
    commands: dict[str, dict[str, Any]], name: str
) -> None:
    answer = commands[name]
    assert answer["code"] == 2, answer
    (line,) = re.findall(r"^error: .*(?:\n.*)*", answer["err"], re.MULTILINE)
    assert re.search(REFUSALS[name], line), line
    assert "\n" not in line.strip()
    assert answer["out"] == ""


def test_a_pickle_is_not_even_downloaded(hub: Hub, commands: dict[str, dict[str, Any]]) -> None:
    assert commands["pickle"]["code"] == 2
    assert any("/me/pickled/resolve/" in request for request in hub.seen)
    assert not any("pytorch_model.bin" in request for request in hub.seen)


def test_a_refusal_leaves_nothing_half_written(
    hub: Hub, commands: dict[str, dict[str, Any]], user: Path
) -> None:
    assert set(commands) > set(REFUSALS)
    assert not (user / "refused").exists()
    assert [p.name for p in user.iterdir() if p.name.startswith(".")] == []
    assert len(hub.repo("me/coded").commits) == 2  # its own two, and no pull request's
    made = ("hoarder/too-much",)  # by the push that then failed, which removes it again
    for absent in ("me/by-a-reader", "me/by-nobody", "you/not-mine", "me/own-licence", *made):
        assert ("models", absent) not in hub.repos
    # What was computed before the push was refused is not lost.
    assert (user / "kept" / "model.safetensors").is_file()


# -- loading, from nothing but the Hub --------------------------------------------------------

LOAD = """
import re
import traceback
import numpy as np
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

report["cache before"] = os.listdir(os.environ["HF_HOME"])
picture = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
image = Image.fromarray(picture).convert("RGB")

# First the two libraries that know nothing of coin-hf.
with torch.no_grad():
    network = timm.create_model("hf-hub:me/coded", pretrained=True).eval()
    cfg = timm.data.resolve_data_config({}, model=network)
    x = timm.data.create_transform(**cfg, is_training=False)(image).unsqueeze(0)
    by_timm = network(x)
    wrapper = AutoModelForImageClassification.from_pretrained("me/coded").eval()
    by_transformers = wrapper(pixel_values=x).logits
    report["labels"] = [wrapper.config.id2label[i] for i in range(wrapper.config.num_labels)]
    answers = pipeline("image-classification", model="me/coded")(image, top_k=10)
report["without coin-hf"] = not any(name.startswith("coin_hf") for name in sys.modules)

from coin_hf import CodedEnsemble, InputError

ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
report["same input"] = torch.equal(ensemble.preprocess(image).unsqueeze(0), x)
with torch.no_grad():
    by_coin_hf = ensemble.model(x)
report["finite"] = bool(by_timm.isfinite().all()) and float(by_timm.std()) > 0
report["bit-equal"] = [torch.equal(by_timm, other) for other in (by_transformers, by_coin_hf)]
report["top"] = [ensemble.coded.label_names[int(by_coin_hf.argmax())], answers[0]["label"]]
scores = {answer["label"]: answer["score"] for answer in answers}
softmax = by_coin_hf[0].softmax(-1)
report["scores differ by"] = max(
    abs(scores[name] - float(p)) for name, p in zip(ensemble.coded.label_names, softmax)
)
with torch.no_grad():
    f_low, f_high = (expert.model(x) for expert in ensemble.experts)
    decoded = ensemble(x, missing=[1])
report["decode off by"] = float((decoded[1] - (by_coin_hf - 0.5 * f_low) / 0.5).abs().max())
report["answers kept"] = torch.equal(decoded[0], f_low) and not torch.equal(decoded[1], f_high)
report["experts"] = [
    {name: value.double().sum().item() for name, value in expert.parameters.items()}
    for expert in ensemble.experts
]
report["other places"] = torch.equal(
    CodedEnsemble.from_pretrained("me/coded", experts=["me/low", "me/high"]).experts[1].model(x),
    f_high,
)

card = ModelCard.load("me/coded")
report["card"] = card.data.to_dict()
report["text"] = card.text
report["blocks"] = []
for block in re.findall(r"~~~python\\n(.*?)~~~", card.text, re.DOTALL):
    names = {}
    try:
        exec(block, names)
    except Exception:
        report["blocks"].append(traceback.format_exc())
        continue
    result = names.get("logits") or names.get("classify") or names["model"]
    report["blocks"].append(type(result).__name__)
    if "logits" in names:
        report["shapes"] = [list(tensor.shape) for tensor in names["logits"]]

weights = HfApi().parse_safetensors_file_metadata("me/coded", "model.safetensors")
report["header"] = [weights.metadata, sorted(weights.tensors)]

vit = AutoModelForImageClassification.from_pretrained("me/coded-vit").eval()
coded_vit = CodedEnsemble.from_pretrained("me/coded-vit", experts=True)
x = coded_vit.preprocess(image).unsqueeze(0)
with torch.no_grad():
    report["vit bit-equal"] = torch.equal(vit(pixel_values=x).logits, coded_vit.model(x).logits)
    report["vit decoded"] = [list(tensor.shape) for tensor in coded_vit(x, missing=[0])]
report["vit top"] = [
    pipeline("image-classification", model="me/coded-vit")(image)[0]["label"],
    vit.config.id2label[int(vit(pixel_values=x).logits.argmax())],
]

branch = CodedEnsemble.from_pretrained("me/coded-by-branch", revision="trial")
old = CodedEnsemble.from_pretrained("me/coded-by-branch", revision=said["old"])
report["lams"] = [branch.coin["lam"], old.coin["lam"]]

def refused(*args, **kwargs):
    try:
        CodedEnsemble.from_pretrained(*args, **kwargs)
    except InputError as error:
        return str(error)

report["empty main"] = refused("me/coded-by-branch")
report["private without token"] = refused("me/private")
os.environ["HF_TOKEN"] = said["token"]
private = CodedEnsemble.from_pretrained("me/private")
heads = [e.coded.model.get_classifier().weight for e in (private, ensemble)]
report["private with token"] = torch.equal(*heads)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of someone who only loads."""
    return tmp_path_factory.mktemp("fresh-home")


@pytest.fixture(scope="module")
def loaded(
    hub: Hub, folder: Path, commands: dict[str, dict[str, Any]], home: Path
) -> dict[str, Any]:
    """What a fresh process with an empty cache sees, after an expert's main branch has moved on."""
    save_timm(folder / "moved" / "low", timm_model(7), label_names=NAMES)
    moved = {"folder": str(folder / "moved" / "low")}
    sha = python(MOVE, moved, environment(hub.endpoint, home / "maker", WRITER))["sha"]
    assert hub.repo("me/low").branches["main"] == sha
    (home / "user").mkdir()
    said = {"old": SHA.findall(commands["branch"]["out"])[0], "token": WRITER}
    return python(LOAD, said, environment(hub.endpoint, home / "user"))


MOVE = """
from huggingface_hub import HfApi

report["sha"] = HfApi().upload_folder(repo_id="me/low", folder_path=said["folder"]).oid
"""


def test_timm_transformers_and_coin_hf_load_the_same_network(loaded: dict[str, Any]) -> None:
    assert loaded["cache before"] == []
    assert loaded["without coin-hf"]
    assert loaded["same input"]
    assert loaded["finite"]
    assert loaded["bit-equal"] == [True, True]


def test_the_weights_declare_their_format_and_are_read_in_part(
    hub: Hub, loaded: dict[str, Any], folder: Path
) -> None:
    metadata, names = loaded["header"]
    assert metadata == {"format": "pt"}
    assert names == sorted(load_file(folder / "low" / "model.safetensors"))
    assert hub.ranges > 0


def test_the_pipeline_names_the_class_that_the_logits_name(loaded: dict[str, Any]) -> None:
    assert loaded["labels"] == NAMES
    assert loaded["top"][0] == loaded["top"][1]
    assert loaded["scores differ by"] < 1e-6


def test_the_experts_come_at_their_pinned_commits(
    loaded: dict[str, Any], folder: Path, hub: Hub, published: dict[str, str]
) -> None:
    assert hub.repo("me/low").branches["main"] != published["me/low"]
    for name, sums in zip(("low", "high"), loaded["experts"], strict=True):
        weights = load_file(folder / name / "model.safetensors")
        assert sums == {key: weights[key].double().sum().item() for key in sums}
    moved = load_file(folder / "moved" / "low" / "model.safetensors")
    assert any(moved[key].double().sum().item() != s for key, s in loaded["experts"][0].items())
    assert loaded["other places"]


def test_decoding_with_what_was_loaded(loaded: dict[str, Any]) -> None:
    assert loaded["answers kept"]
    assert loaded["decode off by"] < 1e-5


def test_a_transformers_pair_loads_by_its_library(loaded: dict[str, Any]) -> None:
    assert loaded["vit bit-equal"]
    assert loaded["vit decoded"] == [[1, 10], [1, 10]]
    assert loaded["vit top"][0] == loaded["vit top"][1]


def test_revisions_by_branch_and_by_commit(loaded: dict[str, Any]) -> None:
    assert loaded["lams"] == [0.5, 0.01]
    assert "'me/coded-by-branch' is not a coded model" in loaded["empty main"]


def test_a_private_repository_needs_the_token(loaded: dict[str, Any]) -> None:
    assert loaded["private without token"].startswith("there is no model 'me/private' on the Hub")
    assert loaded["private with token"]


# -- the card ---------------------------------------------------------------------------------


def test_the_code_blocks_of_the_pushed_card_run(loaded: dict[str, Any]) -> None:
    assert loaded["blocks"] == ["ResNet", "ImageClassificationPipeline", "list"]
    assert loaded["shapes"] == [[1, 10], [1, 10]]


def test_the_metadata_of_the_pushed_card(
    hub: Hub, loaded: dict[str, Any], published: dict[str, str]
) -> None:
    card = loaded["card"]
    assert card["base_model"] == ["me/low", "me/high"]
    assert card["base_model_relation"] == "merge"
    assert card["library_name"] == "timm"
    assert card["pipeline_tag"] == "image-classification"
    assert card["tags"][:3] == ["merge", "coin", "erasure-coding"]
    assert card["datasets"] == ["me/digits"]
    assert card["license"] == "apache-2.0"
    (index,) = card["model-index"]
    assert index["name"] == "coded"
    result = json.loads(hub.read("me/coded", "result.json"))
    (entry,) = index["results"]  # both experts are measured on parts of one dataset
    assert entry["task"]["type"] == "image-classification"
    assert entry["dataset"] == {
        "name": "me/digits",
        "type": "me/digits",
        "split": "test",
        "revision": published["me/digits"],
    }
    assert entry["metrics"] == [
        {
            "type": "nda",
            "value": round(erasure["scores"]["coin"]["nda"], 2),
            "name": f"NDA with '{missing}' missing",
        }
        for erasure, missing in zip(result["erasures"], ("low", "high"), strict=True)
    ]


def test_the_text_of_the_pushed_card_names_the_commits(
    loaded: dict[str, Any], published: dict[str, str]
) -> None:
    for name in ("me/low", "me/high"):
        assert f"https://huggingface.co/{name}" in loaded["text"]
        assert published[name] in loaded["text"]
    assert 'create_model("hf-hub:me/coded", pretrained=True)' in loaded["text"]


# -- no network -------------------------------------------------------------------------------


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again, and closed, once the block ends
    path = recipe(tmp_path / "recipe.yaml", output=str(tmp_path / "out"))
    env = environment(f"http://127.0.0.1:{port}", tmp_path / "home")
    done = coin_hf("encode", path, env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: cannot reach the Hub for the model 'me/low' \(ConnectError\): check the network, "
        r"or set HF_HUB_OFFLINE=1 to work from the local cache\n",
        done.stderr,
    )
    assert not (tmp_path / "out").exists()


OFFLINE = (
    COMMANDS
    + """
from coin_hf import CodedEnsemble, InputError

def refused(*args, **kwargs):
    try:
        CodedEnsemble.from_pretrained(*args, **kwargs)
    except InputError as error:
        return str(error)

ensemble = CodedEnsemble.from_pretrained("me/coded", experts=True)
report["experts"] = [expert.revision for expert in ensemble.experts]
report["never seen"] = refused("me/never-seen")
report["no revision"] = refused("me/coded", revision="v9")
report["no commit"] = refused("me/coded", revision="0" * 40)
"""
)


@pytest.fixture(scope="module")
def offline(commands: dict[str, dict[str, Any]], user: Path) -> dict[str, Any]:
    """The same user as before, with HF_HUB_OFFLINE=1 and no Hub to reach."""
    args = ["encode", str(user / "recipe.yaml"), "-o", f"output={user / 'offline'}"]
    other = ["-o", f"output={user / 'refused'}", "-o", f"datasets.high.revision={'f' * 40}"]
    said = {
        "encode": {"args": args, "token": None},
        "other data": {"args": [*args, *other], "token": None},
    }
    env = {**environment("http://127.0.0.1:9", user / "home"), "HF_HUB_OFFLINE": "1"}
    return python(OFFLINE, said, env)


def test_a_recipe_runs_again_offline(offline: dict[str, Any], user: Path) -> None:
    assert offline["encode"]["code"] == 0, offline["encode"]["err"]
    first, second = (
        json.loads((user / name / "result.json").read_text()) for name in ("coded", "offline")
    )
    assert first["experts"] == second["experts"]
    assert first["datasets"] == second["datasets"]
    assert numbers(first) == pytest.approx(numbers(second), rel=1e-6)


def test_offline_data_of_another_revision_is_refused(offline: dict[str, Any], user: Path) -> None:
    assert offline["other data"]["code"] == 2, offline["other data"]
    assert (
        f"error: the dataset 'me/digits' at revision '{'f' * 40}' is not in the local cache and "
        "HF_HUB_OFFLINE is set" in offline["other data"]["err"]
    )
    assert not (user / "refused").exists()


def test_a_coded_model_loads_again_offline(
    offline: dict[str, Any], published: dict[str, str]
) -> None:
    assert offline["experts"] == [published["me/low"], published["me/high"]]
    for case in ("never seen", "no revision", "no commit"):
        assert "is not in the local cache and HF_HUB_OFFLINE is set" in offline[case]

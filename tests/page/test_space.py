"""The Space of a coded model: pushed to a Hub, and started from its folder."""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from builders import digits, make_world
from gradio_client import Client, handle_file
from hub_clients import DATA, PUBLISH, READER, TOKENS, WRITER, coin_hf, environment, python
from hub_server import Hub, serve
from huggingface_hub import SpaceCard
from pages import script_of

import coin_hf as package


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve(tmp_path_factory.mktemp("hub"), TOKENS) as running:
        yield running
    assert running.unknown == [], "a client asked for what the server does not speak"


@pytest.fixture(scope="module")
def user(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of someone who has pushed two experts, their data and a coded model."""
    folder = tmp_path_factory.mktemp("user")
    make_world(folder)
    env = environment(hub.endpoint, folder / "home", WRITER)
    python(PUBLISH, {"folder": str(folder), "models": {"me/low": False, "me/high": False}}, env)
    recipe = {
        "experts": [{"model": f"me/{name}", "dataset": name} for name in ("low", "high")],
        "datasets": DATA,
        "samples": {"per_expert": 8},
        "lam": 0.01,
        "fisher": {"estimator": "exact"},
        "hub": {"repo": "me/coded"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = coin_hf("encode", "recipe.yaml", "--push", env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.hub
def test_a_space_is_pushed_and_starts_from_its_folder(hub: Hub, user: Path) -> None:
    env = environment(hub.endpoint, user / "home", WRITER)
    done = coin_hf("space", "me/coded", "me/page", "--output", "page", env=env, cwd=user)
    assert done.returncode == 0, done.stderr
    repo = hub.repo("me/page", "spaces")
    assert done.stdout == f"{hub.endpoint}/spaces/me/page/commit/{repo.branches['main']}\n"
    files = sorted(path.name for path in (user / "page").iterdir())
    assert files == ["README.md", "app.py", "requirements.txt"]
    for name in files:
        assert hub.read("me/page", name, kind="spaces") == (user / "page" / name).read_bytes()

    data = SpaceCard.load(user / "page" / "README.md").data
    assert (data.title, data.sdk, data.app_file) == ("page", "gradio", "app.py")
    assert data.sdk_version == version("gradio")
    assert data.python_version == ".".join(platform.python_version_tuple()[:2])
    assert data.models == ["me/coded", "me/low", "me/high"]
    assert data.datasets == ["me/digits"]
    assert len(data.short_description) <= 60  # the Hub refuses longer ones
    assert (user / "page" / "requirements.txt").read_text() == (
        "--extra-index-url https://download.pytorch.org/whl/cpu\ntorch\ntorchvision\n"
        f"coin-hf[app]=={package.__version__}\n"
    )
    assert hub.repo("me/coded").branches["main"] in (user / "page" / "app.py").read_text()

    digits(slice(300, 301))[0]["image"].save(user / "digit.png")
    visitor = environment(hub.endpoint, user / "visitor")  # nobody is logged in there
    with script_of(user / "page", visitor) as url:
        client = Client(url, verbose=False, analytics_enabled=False)
        own, decoded, facts = client.predict(
            "high", [], handle_file(user / "digit.png"), api_name="/answer"
        )
        assert own["value"]["confidences"]
        assert decoded["value"]["confidences"]
        assert "| networks run | 1 | 2 |" in facts
        examples = [c["props"] for c in client.config["components"] if c["type"] == "dataset"]
        assert len(examples[0]["samples"]) == 4  # streamed from the Hub
        client.close()


@pytest.mark.slow
@pytest.mark.hub
@pytest.mark.parametrize(
    ("target", "token", "said"),
    [
        ("me/local", WRITER, "low, high lie in folders, which a Space cannot load: push the"),
        ("me/nothing", WRITER, "there is no model 'me/nothing' on the Hub"),
        ("me/coded", READER, "the token of 'me' may not write to 'me/p'"),
    ],
)
def test_nothing_is_pushed_that_cannot_be_or_that_does_not_exist(
    target: str, token: str, said: str, hub: Hub, user: Path, coded: Path
) -> None:
    env = environment(hub.endpoint, user / "home", token)
    if target == "me/local":
        assert coin_hf("push", str(coded), "me/local", env=env, cwd=user).returncode == 0
    done = coin_hf("space", target, "me/p", env=env, cwd=user)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert ("spaces", "me/p") not in hub.repos


def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, coin_hf: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "coded").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    new, full = tmp_path / "new", tmp_path / "full"
    for arguments, said in (
        (("me/coded", "me/p", "--no-push"), "say where the Space is written: add --output"),
        (("me/coded", "me/p", "--no-push", "--output", full), "is not an empty folder: choose"),
        (("me/coded", "a b", "--no-push", "--output", new), "'a b' is neither an existing folder"),
        (
            (tmp_path / "coded", "me/p", "--no-push", "--output", new),
            "is a folder, which a Space cannot load: push it by `coin-hf push",
        ),
        (("me/coded", "me/p"), "nothing can be pushed to 'me/p' offline"),
    ):
        code, out, err = coin_hf("space", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert not new.exists()

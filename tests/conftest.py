"""Settings of the whole suite: no network, no progress bars, quiet libraries."""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = tempfile.TemporaryDirectory(prefix="coin-hf-tests-")
os.environ["HF_HOME"] = CACHE.name  # neither the user's cache nor the user's token
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
# Small networks run faster on one thread, and threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two aligned timm experts, digits and `recipe.yaml`; not to be changed."""
    from builders import make_world

    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def coin_hf(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: arguments -> exit code, stdout, stderr."""
    from coin_hf.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["coin-hf", *map(str, arguments)])
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # a warning is printed, as for a user
            with pytest.raises(SystemExit) as stopped:
                main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coded model of unequal betas and a chosen lambda, beside its experts and digits."""
    from builders import make_world

    from coin_hf.pipeline import encode
    from coin_hf.recipe import Recipe

    folder = tmp_path_factory.mktemp("coded")
    recipe = make_world(folder, betas=[0.25, 0.75], lam="auto", evaluation={"batch_size": 16})
    encode(Recipe.from_yaml(recipe)).save_pretrained(folder / "coded")
    return folder / "coded"

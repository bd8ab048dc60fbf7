"""Settings of the whole suite: no network, no progress bars, quiet libraries."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two aligned timm experts, digits and `recipe.yaml`; not to be changed."""
    from builders import make_world

    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder

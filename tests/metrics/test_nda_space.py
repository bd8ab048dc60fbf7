"""The metric's Space, started as the Hub starts it."""

import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from huggingface_hub import SpaceCard
from pages import script_of

import coin_hf
from coin_hf.metrics.nda import nda

FOLDER = Path(coin_hf.__file__).parent / "metrics" / "nda"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("space")
    for name in ("README.md", "app.py", "nda.py"):  # the package's own __init__ is no part of it
        shutil.copy(FOLDER / name, folder)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with script_of(folder, environment) as url:
        opened = Client(url, verbose=False, analytics_enabled=False)
        yield opened
        opened.close()


@pytest.mark.slow
def test_the_form_computes_the_metric(client: Client) -> None:
    found = client.predict("0, 1, 2, 2", "0 1 2 3", "0,1,2,3", api_name="/compute")
    assert found == nda([0, 1, 2, 2], [0, 1, 2, 3], [0, 1, 2, 3])
    never = client.predict("0, 1", "0, 0", "1, 1", api_name="/compute")
    assert never == {
        "nda": None, "decoded_accuracy": 0.5, "expert_accuracy": 0.0, "agreement": 0.5
    }  # fmt: skip
    shown = [c["props"].get("value") for c in client.config["components"]]
    assert any(isinstance(text, str) and "# Metric card for NDA" in text for text in shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("0, 1", "0", "0, 1"), "must be equally long"),
        (("0, cat", "0, 1", "0, 1"), "predictions must be whole numbers between commas"),
        (("0, 1", "", "0, 1"), "references must be whole numbers"),
    ],
)
def test_wrong_fields_are_one_sentence(
    fields: tuple[str, str, str], said: str, client: Client
) -> None:
    with pytest.raises(AppError, match=said):
        client.predict(*fields, api_name="/compute")


def test_its_card_and_requirements_fit_its_app() -> None:
    data = SpaceCard.load(FOLDER / "README.md").data
    assert (data.sdk, data.app_file) == ("gradio", "app.py")
    assert str(data.sdk_version).split(".")[0] == version("gradio").split(".")[0]
    imported = re.findall(r"^(?:import|from) (\w+)", (FOLDER / "nda.py").read_text(), re.MULTILINE)
    required = re.findall(r"^[\w-]+", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
    assert set(imported) - {"typing"} <= set(required)
    assert "gradio" in required

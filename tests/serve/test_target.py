"""What a router knows of networks that run elsewhere: as much as where they are loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from builders import make_world, save_digits, save_sliced, save_transformers, write_recipe
from text_builders import make_text_world

from coin_hf import CodedEnsemble, InputError, Recipe, encode
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.target import check_places, open_target

pytestmark = pytest.mark.slow


def image_classifiers(folder: Path) -> Path:
    """Two vision transformers of transformers."""
    save_digits(folder / "digits")
    for seed, name in enumerate(("low", "high")):
        save_transformers(folder / name, seed)
    return write_recipe(folder)


def own_labels(folder: Path) -> Path:
    """Two networks of timm with labels of their own, and two coded models."""
    save_digits(folder / "digits")
    for seed, (name, labels) in enumerate({"low": [3, 0, 1], "high": [1, 9, 8]}.items()):
        save_sliced(folder / name, labels, seed)
    data = {"path": str(folder / "digits")}
    low, high = ({**data, "labels": labels} for labels in ([0, 1, 3], [1, 8, 9]))
    return write_recipe(folder, datasets={"low": low, "high": high}, betas=None, coded=2)


WORLDS: dict[str, Callable[[Path], Path]] = {
    "timm": make_world,
    "own labels": own_labels,
    "transformers": image_classifiers,
    "texts": make_text_world,
}


@pytest.mark.filterwarnings("ignore:the experts have labels of their own")
@pytest.mark.filterwarnings("ignore:dataset .* numbers its classes in another order")
@pytest.mark.parametrize("kind", WORLDS)
def test_no_network_is_read_where_other_servers_run_them(kind: str, tmp_path: Path) -> None:
    coded = tmp_path / "coded"
    encode(Recipe.from_yaml(WORLDS[kind](tmp_path))).save_pretrained(coded)
    loaded = open_target(str(coded), ServeSettings())
    assert isinstance(loaded.ensemble, CodedEnsemble)
    for file in coded.rglob("*.safetensors"):
        file.unlink()
    names = [expert.name for expert in loaded.coin.experts]
    names += ["coded", "coded-1"][: loaded.num_coded]
    places = dict.fromkeys(names, "http://127.0.0.1:1")
    settings = ServeSettings.model_validate({"backend": "remote", "urls": places})
    found = open_target(str(coded), settings)
    assert (found.ensemble, found.prepare) == (None, None)
    for attribute in ("labels", "rows", "task", "num_coded"):
        assert getattr(found, attribute) == getattr(loaded, attribute), attribute
    check_places(found, settings)
    few = settings.model_copy(update={"urls": {"coded": "http://127.0.0.1:1"}})
    with pytest.raises(InputError, match="`urls` must say where"):
        check_places(found, few)

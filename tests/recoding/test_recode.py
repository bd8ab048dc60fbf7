"""Re-coding without data: the same bits, other betas, experts that join and leave."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import digits, fit_classifier, recipe_dict, save_timm, save_transformers, timm_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coin_hf import CodedEnsemble, InputError, Recipe, encode
from coin_hf.erasure.design import design
from coin_hf.hub.layout import coded_folder
from coin_hf.recoding.recode import Newcomer, recode

pytestmark = pytest.mark.slow

GROUPS = {"low": [0, 1, 2, 3], "middle": [3, 4, 5, 6], "high": [6, 7, 8, 9]}


@pytest.fixture(scope="module")
def places(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recode")
    for seed, (name, labels) in enumerate(GROUPS.items()):
        model = timm_model(seed)
        fit_classifier(model, digits(slice(0, 200)), labels)
        save_timm(folder / name, model, label_names=[f"{name} {i}" for i in range(10)])
    return folder


def recipe(world: Path, places: Path, names: list[str], **changes: Any) -> Recipe:
    return Recipe.from_dict(
        {
            **recipe_dict(world),
            "experts": [{"model": str(places / name), "dataset": name} for name in names],
            "datasets": {
                name: {
                    "path": str(world / "digits"),
                    "labels": GROUPS[name],
                    "labels_by": "position",
                }
                for name in GROUPS
            },
            "fisher": {"estimator": "exact", "save": True},
            "output": None,
            **changes,
        }
    )


def make(folder: Path, recipe: Recipe) -> Path:
    encode(recipe).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def three(world: Path, places: Path) -> Path:
    return make(places / "three", recipe(world, places, list(GROUPS), coded=2))


@pytest.fixture(scope="module")
def two(world: Path, places: Path) -> Path:
    return make(places / "two", recipe(world, places, ["low", "high"], betas=[0.3, 0.7]))


def weights(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("model*.safetensors")):
        yield file.relative_to(folder).as_posix(), file.read_bytes()


def test_the_same_betas_and_lambda_give_the_same_bytes(
    three: Path, two: Path, tmp_path: Path
) -> None:
    for number, target in enumerate((three, two)):
        out = tmp_path / str(number)
        recode(target, out)
        assert dict(weights(out)) == dict(weights(target))
        assert {p.name for p in (out / "fisher").iterdir()} == {
            p.name for p in (target / "fisher").iterdir()
        }
        for place in (".", "coded-1")[: 2 - number]:
            before = json.loads((target / place / "config.json").read_text())
            assert json.loads((out / place / "config.json").read_text()) == before


def test_chunks_do_not_matter(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coin_hf.recoding.streaming.CHUNK", 101)
    recode(three, tmp_path / "out")
    assert dict(weights(tmp_path / "out")) == dict(weights(three))


@pytest.mark.parametrize("save", [True, "half"])
def test_other_betas_and_lambda_equal_encoding_with_them(
    world: Path, places: Path, tmp_path: Path, save: Any
) -> None:
    make(
        tmp_path / "a",
        recipe(world, places, ["low", "high"], fisher={"estimator": "exact", "save": save}),
    )
    expected = recipe(
        world,
        places,
        ["low", "high"],
        betas=[0.7, 0.3],
        lam=1e-3,
        fisher={"estimator": "exact", "save": save},
    )
    make(tmp_path / "b", expected)
    recode(tmp_path / "a", tmp_path / "c", betas=[0.7, 0.3], lam=1e-3)
    assert dict(weights(tmp_path / "c")) == dict(weights(tmp_path / "b"))
    coin = json.loads((tmp_path / "c" / "coin.json").read_text())
    assert (coin["betas"], coin["lam"]) == ([0.7, 0.3], 1e-3)


def test_more_coded_models(world: Path, places: Path, two: Path, tmp_path: Path) -> None:
    expected = recipe(world, places, ["low", "high"], coded=2)
    make(tmp_path / "b", expected)
    recode(two, tmp_path / "c", coded=2)
    assert dict(weights(tmp_path / "c")) == dict(weights(tmp_path / "b"))
    assert json.loads((tmp_path / "c" / "coin.json").read_text())["betas"] == [
        list(row) for row in design(2, 2)
    ]
    recode(tmp_path / "c", tmp_path / "d", betas=[0.3, 0.7])
    assert dict(weights(tmp_path / "d")) == dict(weights(two))


def test_an_expert_joins(world: Path, places: Path, two: Path, tmp_path: Path) -> None:
    """Adding one equals encoding all from the start, on the samples of the first two."""
    recode(two, tmp_path / "c", betas=[0.2, 0.3, 0.5], add=[
        Newcomer(str(places / "middle"), "middle")
    ], overrides=["datasets.middle.path=" + str(world / "digits"),
                  "datasets.middle.labels=[3, 4, 5, 6]"])  # fmt: skip
    whole = recipe(
        world,
        places,
        ["low", "high", "middle"],
        betas=[0.2, 0.3, 0.5],
        samples={"per_expert": 8, "seed": 0, "draws": {"low": "low", "high": "high"}},
    )
    make(tmp_path / "b", whole)
    assert dict(weights(tmp_path / "c")) == dict(weights(tmp_path / "b"))
    for name in ("low", "high", "middle"):
        one, other = (
            load_file(tmp_path / made / "fisher" / f"{name}.safetensors") for made in "bc"
        )
        assert all(torch.equal(one[key], other[key]) for key in one)
    configs = [json.loads((tmp_path / made / "config.json").read_text()) for made in "bc"]
    assert configs[0] == configs[1]
    assert configs[0]["label_names"][0] == "low 0 / high 0 / middle 0"
    coins = [json.loads((tmp_path / made / "coin.json").read_text()) for made in "bc"]
    for key in ("betas", "lam", "experts", "samples", "fisher", "library"):
        assert coins[0][key] == coins[1][key], key


def test_an_expert_joins_by_its_published_fisher(
    world: Path, places: Path, two: Path, tmp_path: Path
) -> None:
    new = [Newcomer(str(places / "middle"), "high")]
    recode(two, tmp_path / "c", add=new)
    published = Newcomer(str(places / "middle"), "high", fisher=str(tmp_path / "c"))
    recode(two, tmp_path / "d", add=[published])
    assert dict(weights(tmp_path / "d")) == dict(weights(tmp_path / "c"))


def test_an_expert_leaves(three: Path, places: Path, world: Path, tmp_path: Path) -> None:
    recode(three, tmp_path / "c", drop=["middle"], betas=[0.3, 0.7])
    draws = {name: name for name in GROUPS}
    whole = recipe(
        world,
        places,
        ["low", "high"],
        betas=[0.3, 0.7],
        samples={"per_expert": 8, "seed": 0, "draws": draws},
    )
    make(tmp_path / "b", whole)
    assert dict(weights(tmp_path / "c")) == dict(weights(tmp_path / "b"))
    assert not (tmp_path / "c" / "fisher" / "middle.safetensors").exists()
    recode(three, tmp_path / "d", drop=["low", "high"], add=[Newcomer(str(places / "low"), "low")])
    coin = json.loads((tmp_path / "d" / "coin.json").read_text())
    assert [expert["name"] for expert in coin["experts"]] == ["middle", "low"]
    assert coin["betas"] == [list(row) for row in design(2, 2)]


def test_the_new_repository_claims_no_measurement(three: Path, tmp_path: Path) -> None:
    result = recode(three, tmp_path / "c", lam=0.5)
    assert result.dump() == json.loads((tmp_path / "c" / "result.json").read_text()) | {
        "experts": result["experts"],
        "datasets": result["datasets"],
    }
    assert (result["erasures"], result["mean_nda"], result["detection"]) == ([], {}, [])
    assert (result["calibration"], result["choice"]) == (None, None)
    assert result["recoded_from"]["lam"] == 0.01
    assert not (tmp_path / "c" / "nda.png").exists()
    card = (tmp_path / "c" / "README.md").read_text()
    assert "**Not measured.**" in card
    assert "model-index" not in card
    assert "NDA =" not in card
    assert "| λ | 0.5 (given when re-coding) |" in card
    read = CodedEnsemble.from_pretrained(tmp_path / "c", experts=True)
    x = torch.stack([read.preprocess(image) for image in digits(slice(200, 204))["image"]])
    assert len(read(x, missing=[0, 1])) == 3
    with pytest.raises(InputError, match="no calibrated threshold, it was re-coded without data"):
        read.suspect(x)


def test_in_place(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    recode(two, folder)
    with pytest.raises(InputError, match="is not empty: choose another `output`"):
        recode(folder, lam=0.5)
    recode(folder, lam=0.5, overwrite=True)
    assert json.loads((folder / "coin.json").read_text())["lam"] == 0.5
    recode(folder, lam=0.01, overwrite=True)
    assert dict(weights(folder)) == dict(weights(two))
    assert [p.name for p in tmp_path.iterdir()] == ["two"]


def test_transformers_in_shards(world: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("low", "high")):
        save_transformers(tmp_path / name, seed)
    base = recipe_dict(world)
    base["experts"] = [{"model": str(tmp_path / n), "dataset": n} for n in ("low", "high")]
    made = encode(
        Recipe.from_dict({**base, "fisher": {"estimator": "exact", "save": True}, "coded": 2})
    )
    made.save_pretrained(tmp_path / "coded")
    recode(tmp_path / "coded", tmp_path / "again")
    for c in range(2):
        one, other = (tmp_path / n / coded_folder(c) for n in ("coded", "again"))
        assert dict(weights(one)) == dict(weights(other))
        assert (other / "preprocessor_config.json").is_file()
    # The same coded model, its weights in two files.
    state = load_file(tmp_path / "again" / "model.safetensors")
    names = sorted(state)
    (tmp_path / "again" / "model.safetensors").unlink()
    for part, kept in (("1-of-2", names[::2]), ("2-of-2", names[1::2])):
        save_file(
            {name: state[name] for name in kept},
            tmp_path / "again" / f"model-0000{part}.safetensors",
            metadata={"format": "pt"},
        )
    recode(tmp_path / "again", tmp_path / "third")
    found: dict[str, torch.Tensor] = {}
    for part in ("1-of-2", "2-of-2"):
        found |= load_file(tmp_path / "third" / f"model-0000{part}.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_half_precision_parameters(world: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("low", "high")):
        save_timm(tmp_path / name, timm_model(seed).to(torch.bfloat16))
    base = recipe_dict(world)
    base["experts"] = [{"model": str(tmp_path / n), "dataset": n} for n in ("low", "high")]
    made = encode(Recipe.from_dict({**base, "fisher": {"estimator": "exact", "save": "half"}}))
    made.save_pretrained(tmp_path / "coded")
    with safe_open(tmp_path / "coded" / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("conv1.0.weight").dtype == torch.bfloat16
    recode(tmp_path / "coded", tmp_path / "again")
    assert dict(weights(tmp_path / "again")) == dict(weights(tmp_path / "coded"))


def damaged_fisher(folder: Path) -> None:
    with (folder / "fisher" / "low.safetensors").open("r+b") as stream:
        stream.truncate(1000)


def missing_fisher(folder: Path) -> None:
    (folder / "fisher" / "low.safetensors").unlink()


def swapped_fishers(folder: Path) -> None:
    shutil.copyfile(folder / "fisher" / "high.safetensors", folder / "fisher" / "low.safetensors")


def rewritten(folder: Path, change: Any) -> None:
    path = folder / "fisher" / "low.safetensors"
    with safe_open(path, framework="pt") as file:
        said = dict(file.metadata())
    values = load_file(path)
    change(said, values)
    save_file(values, path, metadata=said)


def other_samples(folder: Path) -> None:
    rewritten(folder, lambda said, _: said.update(samples_sha256="0" * 64))


def other_shape(folder: Path) -> None:
    rewritten(folder, lambda _, values: values.update({"fc.bias": torch.zeros(7)}))


def other_name(folder: Path) -> None:
    rewritten(folder, lambda _, values: values.update({"fc.scale": values.pop("fc.bias")}))


def negative(folder: Path) -> None:
    rewritten(folder, lambda _, values: values["fc.bias"].neg_())


def no_fisher(folder: Path) -> None:
    rewritten(folder, lambda said, _: said.pop("coin_hf_fisher"))


def without_fishers(folder: Path) -> None:
    coin = json.loads((folder / "coin.json").read_text())
    coin["fisher"]["save"] = False
    (folder / "coin.json").write_text(json.dumps(coin))


def damaged_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(b"\xff" * 64)


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "damaged Fisher": (damaged_fisher, {}, "the Fisher of expert 'low' is damaged or cut short"),
    "missing Fisher": (missing_fisher, {}, r"no Fisher of expert 'low' \(low.safetensors\): encod"),
    "another's Fisher": (
        swapped_fishers,
        {},
        "to ./high at revision .* expert 'low' is at",
    ),
    "other samples": (other_samples, {}, "of expert 'low' was taken on other samples than"),
    "other shape": (other_shape, {}, r"has 'fc.bias' of shape \(7,\), not \(10,\)"),
    "other name": (other_name, {}, "expert 'low', which has no parameter 'fc.scale'"),
    "negative": (negative, {}, "the Fisher of expert 0 is negative or not finite in 'fc.bias'"),
    "not a Fisher": (no_fisher, {}, r"is not a Fisher this coin-hf can read \(format none\)"),
    "without Fishers": (without_fishers, {}, "holds no Fishers, so it cannot be re-coded without"),
    "damaged weights": (damaged_weights, {}, "the coded model: model.safetensors is missing, dama"),
    "betas": (None, {"betas": [0.7, 0.2]}, "betas must sum to 1, but 0.7, 0.2 sum to 0.9"),
    "number of betas": (None, {"betas": [0.7, 0.2, 0.1]}, "betas has 3 values .* for 2 experts"),
    "lambda": (None, {"lam": -1.0}, "'lam': expected at least 0"),
    "unknown name": (None, {"drop": ["hihg"]}, "no expert 'hihg' to drop: did you mean 'high'"),
    "too few left": (None, {"drop": ["high"]}, "'experts': expected 2 or more entries"),
    "same name": (None, {"add": ["low"]}, "two experts are named 'low'"),
    "no such expert": (None, {"add": ["nowhere"]}, "there is no folder"),
    "an override": (None, {"overrides": ["lam=1"]}, "override 'lam=1' changes what re-coding has"),
}


@pytest.mark.parametrize("case", MISTAKES, ids=str)
def test_mistakes(case: str, two: Path, places: Path, tmp_path: Path) -> None:
    change, arguments, message = MISTAKES[case]
    target = two
    if change is not None:
        target = places / "broken"  # beside the experts, which it names by relative paths
        shutil.copytree(two, target)
    try:
        if "add" in arguments:
            new = [Newcomer(str(places / name), "low") for name in arguments["add"]]
            arguments = {**arguments, "add": new}
        if change is not None:
            change(target)
        with pytest.raises((InputError, ValueError), match=message) as caught:
            recode(target, tmp_path / "out", **arguments)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    finally:
        if change is not None:
            shutil.rmtree(target)


def test_an_expert_that_changed_is_refused(two: Path, places: Path, tmp_path: Path) -> None:
    config = places / "low" / "config.json"
    kept = config.read_text()
    config.write_text(kept + " ")
    try:
        with pytest.raises(InputError, match="low has changed: expected revision sha256:"):
            recode(two, tmp_path / "out")
    finally:
        config.write_text(kept)


def test_an_expert_of_another_architecture_is_refused(
    two: Path, places: Path, tmp_path: Path
) -> None:
    other = timm_model(architecture="test_efficientnet")
    odd = save_timm(tmp_path / "odd", other, architecture="test_efficientnet")
    with pytest.raises(InputError, match="'odd' has test_efficientnet"):
        recode(two, tmp_path / "out", add=[Newcomer(str(odd), "low")])
    few = save_timm(tmp_path / "few", timm_model(num_classes=7))
    with pytest.raises(InputError, match=r"'few' has no class names .* its 7 names"):
        recode(two, tmp_path / "out", add=[Newcomer(str(few), "low")])
    assert not (tmp_path / "out").exists()


MEMORY = """
import re, sys, threading, time
from pathlib import Path
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
from coin_hf.recoding.recode import recode
import coin_hf.repository.folder, torch
torch.zeros(1) + 1
before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
recode(sys.argv[1], sys.argv[2], lam=0.5)
done.set()
thread.join()
print(peak - before, sorted({"timm", "datasets", "transformers", "accelerate"} & set(sys.modules)))
"""


def test_memory_does_not_grow_with_the_networks(world: Path, tmp_path: Path) -> None:
    """Below a quarter of one expert, which here is 100 MB; and nothing that runs networks."""
    for seed, name in enumerate(("low", "high")):
        model = timm_model(seed, "resnet50")
        save_timm(tmp_path / name, model, architecture="resnet50")
    size = (tmp_path / "low" / "model.safetensors").stat().st_size
    base = recipe_dict(world)
    base["experts"] = [{"model": str(tmp_path / n), "dataset": n} for n in ("low", "high")]
    base["samples"] = {"per_expert": 1, "seed": 0}
    base["evaluation"] = {"limit": 1}
    made = encode(Recipe.from_dict({**base, "fisher": {"save": True, "estimator": "probe"}}))
    made.save_pretrained(tmp_path / "coded")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "coded"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    used, _, modules = done.stdout.partition(" ")
    assert modules == "[]\n"
    assert size > 90e6
    assert int(used) < size / 4

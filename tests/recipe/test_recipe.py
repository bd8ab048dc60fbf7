import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from coin_hf.erasure.betas import rows_of
from coin_hf.errors import InputError
from coin_hf.recipe import Recipe
from coin_hf.recipe.yaml_file import _Loader

Data = dict[str, Any]
BASE: Data = {
    "experts": [
        {"model": "me/low", "dataset": "small"},
        {"model": "me/high", "dataset": "large", "revision": "v1"},
    ],
    "datasets": {"small": {"path": "me/digits", "labels": [0, "one"]}, "large": {"path": "digits"}},
}


def message(change: Callable[[Data], Any]) -> str:
    """The error for a changed recipe, without the leading source."""
    data = copy.deepcopy(BASE)
    change(data)
    with pytest.raises(InputError) as caught:
        Recipe.from_dict(data, source="my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    return text.removeprefix("my.yaml: ")


def test_defaults_are_filled_in() -> None:
    recipe = Recipe.from_dict(BASE)
    assert recipe.coding_weights == (0.5, 0.5)
    assert recipe.lam == "auto"
    assert recipe.coder == "coin"
    assert recipe.experts[0].label == "low"
    assert recipe.datasets["small"].labels == (0, "one")
    assert recipe.samples.per_expert == 100
    assert recipe.evaluation.split == "test"
    assert recipe.hub is None


@pytest.mark.parametrize("n", range(2, 7))
def test_default_betas_are_equal(n: int) -> None:
    experts = [{"model": f"me/{i}", "dataset": "large"} for i in range(n)]
    assert Recipe.from_dict({**BASE, "experts": experts}).coding_weights == (1 / n,) * n


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"beta": [0.5, 0.5]}, "unknown key 'beta', did you mean 'betas'?"),
        ({"lambda": 1}, "unknown key 'lambda', did you mean 'lam'?"),
        (
            {"zzz": 1},
            "unknown key 'zzz'; valid keys are experts, datasets, betas, coded, classes, coder, "
            "dtype, lam, race, samples, fisher, task_arithmetic, regmean, distillation, refine, "
            "augment, compare, evaluation, output, hub",
        ),
        ({"samples": {"pre_expert": 1}}, "unknown key 'samples.pre_expert', did you mean "),
        ({"evaluation": {"batchsize": 1}}, "unknown key 'evaluation.batchsize', did you mean "),
        (
            {"hub": {"repo": "me/coded", "privat": True}},
            "unknown key 'hub.privat', did you mean 'private'?",
        ),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_one(keys: Data, expected: str) -> None:
    assert message(lambda data: data.update(keys)).startswith(expected)


def test_unknown_keys_in_lists_and_maps() -> None:
    assert (
        message(lambda data: data["experts"][1].update(modle="x"))
        == "unknown key 'experts.1.modle', did you mean 'model'?"
    )
    assert (
        message(lambda data: data["datasets"]["small"].update(lables=[1]))
        == "unknown key 'datasets.small.lables', did you mean 'labels'?"
    )


def test_missing_keys() -> None:
    assert message(lambda data: data.pop("datasets")) == "the key 'datasets' is missing"
    assert (
        message(lambda data: data["experts"][0].pop("model"))
        == "the key 'experts.0.model' is missing"
    )
    assert message(lambda data: data.update(hub={})) == "the key 'hub.repo' is missing"


def test_all_mistakes_are_listed_at_once() -> None:
    def change(data: Data) -> None:
        data.update(beta=[1], lam=-1)
        del data["datasets"]

    assert message(change) == (
        "the key 'datasets' is missing; unknown key 'beta', did you mean 'betas'?; "
        "'lam': expected at least 0 or 'auto', got -1"
    )


@pytest.mark.parametrize(
    ("betas", "expected"),
    [
        ([0.5, 0.6], "betas must sum to 1, but 0.5, 0.6 sum to 1.1"),
        ([1.5, -0.5], "betas must all be positive, got 1.5, -0.5"),
        ([0, 1], "betas must all be positive, got 0, 1"),
        ([0.2, 0.3, 0.5], "betas has 3 values (0.2, 0.3, 0.5) for 2 experts: give one for each"),
        ([], "betas has 0 values () for 2 experts: give one for each"),
        (0.5, "'betas': expected a list, got 0.5"),
        (["a", 0.5], "'betas.0': expected a number, got 'a'"),
        ([True, 0.5], "'betas.0': expected a number, got True"),
    ],
)
def test_bad_betas(betas: Any, expected: str) -> None:
    assert message(lambda data: data.update(betas=betas)) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"lam": "x"}, "'lam': expected a number or 'auto', got 'x'"),
        ({"lam": None}, "'lam': expected a number or 'auto', got None"),
        ({"lam": True}, "'lam': expected a number or 'auto', got True"),
        ({"lam": [0.1]}, "'lam': expected a number or 'auto', got [0.1]"),
        ({"lam": float("inf")}, "'lam': expected at most 1e+30 or 'auto', got inf"),
        (
            {"coder": "coins"},
            "'coder': expected 'coin', 'averaging', 'task_arithmetic', 'regmean' or "
            "'distillation', got 'coins'",
        ),
        ({"samples": 3}, "'samples': expected keys with values, got 3"),
        ({"samples": {"per_expert": 0}}, "'samples.per_expert': expected at least 1, got 0"),
        (
            {"samples": {"per_expert": 2.5}},
            "'samples.per_expert': expected a whole number, got 2.5",
        ),
        (
            {"samples": {"per_expert": True}},
            "'samples.per_expert': expected a whole number, got True",
        ),
        ({"samples": {"seed": -1}}, "'samples.seed': expected at least 0, got -1"),
        ({"samples": {"held_out": 1}}, "'samples.held_out': expected less than 1, got 1"),
        (
            {"evaluation": {"batch_size": "all"}},
            "'evaluation.batch_size': expected a whole number, got 'all'",
        ),
        ({"evaluation": {"limit": 0}}, "'evaluation.limit': expected at least 1, got 0"),
        ({"hub": "me/coded"}, "'hub': expected keys with values, got 'me/coded'"),
        (
            {"hub": {"repo": "a/b", "private": "maybe"}},
            "'hub.private': expected true or false, got 'maybe'",
        ),
        (
            {"evaluation": {"batch_size": 10**30}},
            f"'evaluation.batch_size': expected at most 2.14748e+09, got {10**30}",
        ),
        ({"augment": {"copies": 10**9}}, "'augment.copies': expected at most 1000, got 1000000000"),
        (
            {"distillation": {"lr": 1e300}},
            "'distillation.lr': expected at most 1e+30, got 1e+300",
        ),
        ({"output": 3}, "'output': expected text (put it in quotes), got 3"),
        ({"experts": "me/low"}, "'experts': expected a list, got 'me/low'"),
        ({"experts": None}, "'experts': expected a list, got None"),
        ({"experts": []}, "'experts': expected 2 or more entries, got []"),
        ({"datasets": {}}, "'datasets': expected 1 or more entries, got {}"),
        ({"datasets": ["digits"]}, "'datasets': expected keys with values, got ['digits']"),
    ],
)
def test_wrong_types_and_ranges(keys: Data, expected: str) -> None:
    assert message(lambda data: data.update(keys)) == expected


def test_wrong_types_within_experts_and_datasets() -> None:
    assert (
        message(lambda data: data["experts"].__setitem__(0, "me/low"))
        == "'experts.0': expected keys with values, got 'me/low'"
    )
    assert (
        message(lambda data: data["experts"][0].update(library="jax"))
        == "'experts.0.library': expected 'auto', 'timm' or 'transformers', got 'jax'"
    )
    # YAML reads the class names yes and no as true and false.
    assert message(lambda data: data["datasets"]["small"].update(labels=[0, True])) == (
        "'datasets.small.labels.1': expected a whole number or text (put it in quotes), got True"
    )
    assert (
        message(lambda data: data["datasets"]["small"].update(labels=[]))
        == "'datasets.small.labels': expected 1 or more entries, got []"
    )


def test_one_expert_is_not_enough() -> None:
    assert message(lambda data: data["experts"].pop()).startswith(
        "'experts': expected 2 or more entries, got [{'"
    )


def test_two_experts_of_one_name() -> None:
    assert (
        message(lambda data: data["experts"][1].update(model="you/low"))
        == "two experts are named 'low': give each its own `name` under `experts`"
    )
    data = copy.deepcopy(BASE)
    data["experts"][1].update(model="you/low", name="other")
    assert [expert.label for expert in Recipe.from_dict(data).experts] == ["low", "other"]


def test_a_dataset_that_is_not_there() -> None:
    assert (
        message(lambda data: data["experts"][0].update(dataset="smal"))
        == "expert 'low' names the dataset 'smal', but `datasets` holds small, large, "
        "did you mean 'small'?"
    )


def test_the_samples_may_not_come_from_the_test_split() -> None:
    assert message(lambda data: data.update(evaluation={"split": "train"})) == (
        "dataset 'small' draws its samples from the split 'train' on which NDA is measured: "
        "choose another `split`, or another `evaluation.split`"
    )


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe.from_dict(BASE)
    for block, key in ((recipe, "lam"), (recipe.samples, "seed"), (recipe.experts[0], "model")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(block, key, 1)


def test_dump_and_back() -> None:
    recipe = Recipe.from_dict({**BASE, "lam": 0.1, "betas": [0.25, 0.75], "hub": {"repo": "a/b"}})
    assert Recipe.from_dict(recipe.dump()) == recipe
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.dump()))) == recipe


def test_the_global_random_state_is_untouched() -> None:
    state = random.getstate()
    Recipe.from_dict(BASE)
    assert random.getstate() == state


class TestYaml:
    def write(self, folder: Path, text: str) -> Path:
        path = folder / "recipe.yaml"
        path.write_text(text)
        return path

    def test_a_recipe_is_read(self, tmp_path: Path) -> None:
        assert Recipe.from_yaml(self.write(tmp_path, yaml.safe_dump(BASE))) == Recipe.from_dict(
            BASE
        )

    def test_numbers_that_yaml_takes_for_text(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, yaml.safe_dump(BASE) + "lam: 1e-3\nbetas: [2e-1, 8e-1]\n")
        recipe = Recipe.from_yaml(path)
        assert (recipe.lam, recipe.coding_weights) == (0.001, (0.2, 0.8))
        assert Recipe.from_yaml(path, ["lam=1e-5"]).lam == 1e-5

    def test_no_file(self, tmp_path: Path) -> None:
        path = tmp_path / "missing.yaml"
        with pytest.raises(InputError) as caught:
            Recipe.from_yaml(path)
        assert str(caught.value) == (
            f"there is no recipe {path}: give the path of a recipe, a YAML file"
        )

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is no file: give the path of a recipe"):
            Recipe.from_yaml(tmp_path)

    def test_a_key_given_twice(self, tmp_path: Path) -> None:
        text = yaml.safe_dump(BASE) + "lam: 0.1\nbetas: [0.5, 0.5]\nlam: 0.2\n"
        path = self.write(tmp_path, text)
        first = text.count("\n") - 2
        with pytest.raises(InputError) as caught:
            Recipe.from_yaml(path)
        lines = f"lines {first} and {first + 2}"
        assert str(caught.value) == f"{path}: the key 'lam' is given twice, in {lines}: keep one"

    def test_a_key_given_twice_in_a_block(self, tmp_path: Path) -> None:
        text = yaml.safe_dump(BASE) + "evaluation: {limit: 5, limit: 6}\n"
        with pytest.raises(InputError, match="the key 'limit' is given twice, in line"):
            Recipe.from_yaml(self.write(tmp_path, text))

    def test_merged_keys_may_be_replaced(self, tmp_path: Path) -> None:
        text = yaml.safe_dump({k: v for k, v in BASE.items() if k != "evaluation"})
        text += "evaluation: {<<: {limit: 5, batch_size: 7}, limit: 6}\n"
        found = Recipe.from_yaml(self.write(tmp_path, text)).evaluation
        assert (found.limit, found.batch_size) == (6, 7)

    def test_what_is_merged_may_itself_replace_what_it_merges(self) -> None:
        text = "base: &b {x: 0, y: 2}\nouter:\n  a: &a {<<: *b, x: 1}\nc: {<<: *a}\n"
        assert yaml.load(text, _Loader) == yaml.safe_load(text)

    @pytest.mark.parametrize("text", ["a: !!map x", "!!map [a, b]"])
    def test_what_calls_itself_a_mapping_and_is_none(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InputError, match="is not YAML: expected a mapping node"):
            Recipe.from_yaml(self.write(tmp_path, text))

    @pytest.mark.parametrize("text", ["experts: [", "a: b: c", "\tx: 1"])
    def test_not_yaml(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InputError, match=r"recipe.yaml is not YAML: .*line 1") as caught:
            Recipe.from_yaml(self.write(tmp_path, text))
        assert "\n" not in str(caught.value)

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(b"\xff\xfe\x00model")
        with pytest.raises(InputError, match=r"recipe\.yaml cannot be read as text"):
            Recipe.from_yaml(path)

    @pytest.mark.parametrize("text", ["", "- a\n- b\n", "hello"])
    def test_no_recipe_in_it(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InputError, match=r"holds no recipe: expected keys such as `experts"):
            Recipe.from_yaml(self.write(tmp_path, text))

    def test_nothing_in_yaml_is_run(self, tmp_path: Path) -> None:
        flag = tmp_path / "run"
        text = f"experts: !!python/object/apply:os.mkdir ['{flag}']\n"
        with pytest.raises(InputError, match="is not YAML: could not determine a constructor"):
            Recipe.from_yaml(self.write(tmp_path, text))
        with pytest.raises(InputError, match="gives no YAML value"):
            Recipe.from_dict(BASE).override([text.replace(": ", "=", 1)])
        assert not flag.exists()


class TestCoders:
    def test_by_default_all_are_compared_task_arithmetic_where_it_can_be(self) -> None:
        def names(**keys: Any) -> list[str]:
            return [each.label for each in Recipe.from_dict({**BASE, **keys}).contenders]

        assert names() == ["averaging", "regmean", "distillation", "coin"]
        assert "task_arithmetic" in names(task_arithmetic={"foundation": "me/start"})

    def test_a_contender_has_settings_of_its_own(self) -> None:
        coders = ["coin", {"coder": "regmean", "name": "all maps", "regmean": {"mode": "conv"}}]
        recipe = Recipe.from_dict({**BASE, "lam": 0.1, "compare": {"coders": coders}})
        assert [each.label for each in recipe.contenders] == ["coin", "all maps"]
        coin, regmean = (recipe.with_coder(each) for each in recipe.contenders)
        assert (coin.coder, coin.lam, coin.regmean.mode) == ("coin", 0.1, "linear")
        assert (regmean.coder, regmean.regmean.mode) == ("regmean", "conv")
        assert regmean.experts == recipe.experts
        assert Recipe.from_dict(recipe.dump()) == recipe

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            (
                {"coder": "task_arithmetic"},
                "recipe: the coder 'task_arithmetic' needs the parameters from which the experts "
                "were fine-tuned: add `task_arithmetic: {foundation: HUB ID OR FOLDER}`",
            ),
            (
                {"compare": {"coders": ["coin", "task_arithmetic"]}},
                "recipe: the coder 'task_arithmetic' needs the parameters from which the experts "
                "were fine-tuned: add `task_arithmetic: {foundation: HUB ID OR FOLDER}`",
            ),
            (
                {"compare": {"coders": ["coin", "coin"]}},
                "recipe: two entries of compare.coders are named 'coin': give each its own `name`",
            ),
            (
                {"task_arithmetic": {"foundation": "a/b", "alpha": 1.5}},
                "recipe: 'task_arithmetic.alpha': expected at most 1 or 'auto', got 1.5",
            ),
            (
                {"task_arithmetic": {"foundation": "a/b", "alpha": 0}},
                "recipe: 'task_arithmetic.alpha': expected more than 0 or 'auto', got 0",
            ),
            (
                {"regmean": {"mode": "convolution"}},
                "recipe: 'regmean.mode': expected 'linear' or 'conv', got 'convolution'",
            ),
            (
                {"compare": {"coders": [{"coder": "regmean", "regmean": {"mod": "conv"}}]}},
                "recipe: unknown key 'compare.coders.0.regmean.mod', did you mean 'mode'?",
            ),
            (
                {"coder": "averaging", "fisher": {"save": True}},
                "recipe: fisher.save: the coder 'averaging' computes no Fishers: leave `save` out, "
                "or take the coder 'coin'",
            ),
            (
                {"compare": {"seed": [1]}},
                "recipe: unknown key 'compare.seed', did you mean 'seeds'?",
            ),
        ],
    )
    def test_bad_ones(self, keys: Data, expected: str) -> None:
        with pytest.raises(InputError) as caught:
            Recipe.from_dict({**BASE, **keys})
        assert str(caught.value) == expected


class TestOverrides:
    def test_they_reach_every_place(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(BASE))
        recipe = Recipe.from_yaml(
            path,
            [
                "lam=0.01",
                "samples.seed=4",
                "experts.0.revision=main",
                "betas=[0.3, 0.7]",
                "datasets.small.labels=[1, two]",
                "hub.repo=me/coded",
                "output=a=b",
            ],
        )
        assert recipe.lam == 0.01
        assert recipe.samples.seed == 4
        assert recipe.experts[0].revision == "main"
        assert recipe.coding_weights == (0.3, 0.7)
        assert recipe.datasets["small"].labels == (1, "two")
        assert recipe.hub is not None
        assert recipe.hub.repo == "me/coded"
        assert recipe.output == "a=b"

    def test_the_last_one_wins(self) -> None:
        assert Recipe.from_dict(BASE).override(["lam=1", "lam=2"]).lam == 2

    def test_the_first_recipe_stays(self) -> None:
        recipe = Recipe.from_dict(BASE)
        recipe.override(["lam=1", "experts.0.revision=x", "datasets.small.split=validation"])
        assert recipe == Recipe.from_dict(BASE)

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("lam", "override 'lam' is not of the form key.path=value"),
            ("=3", "override '=3' is not of the form key.path=value"),
            (
                "samples={",
                "override 'samples={' gives no YAML value: while parsing a flow node expected the "
                "node content, but found '<stream end>' in \"<unicode string>\", line 1, "
                "column 2: { ^",
            ),
            ("lam.x=1", "override 'lam.x=1': 'lam' holds a value, not keys"),
            ("lam.x.y=1", "override 'lam.x.y=1': 'x' lies below a value, not below keys"),
            (
                "experts.2.model=x",
                "override 'experts.2.model=x': '2' is not a position in a list of 2, counted "
                "from 0",
            ),
            (
                "experts.-1=x",
                "override 'experts.-1=x': '-1' is not a position in a list of 2, counted from 0",
            ),
            ("sample.seed=1", "recipe: unknown key 'sample', did you mean 'samples'?"),
            ("betas.0=0.3", "recipe: betas must sum to 1, but 0.3, 0.5 sum to 0.8"),
            ("samples.seed=x", "recipe: 'samples.seed': expected a whole number, got 'x'"),
        ],
    )
    def test_bad_ones(self, override: str, expected: str) -> None:
        with pytest.raises(InputError) as caught:
            Recipe.from_dict({**BASE, "lam": 0.5}).override([override])
        assert str(caught.value) == expected


class TestSchema:
    schema = Recipe.model_json_schema()

    def blocks(self) -> list[Data]:
        return [self.schema, *self.schema["$defs"].values()]

    def test_every_object_is_closed(self) -> None:
        assert len(self.blocks()) == 14
        for block in self.blocks():
            assert block["type"] == "object"
            assert block["additionalProperties"] is False

    def test_every_key_is_described(self) -> None:
        for block in self.blocks():
            for key, value in block["properties"].items():
                assert value.get("description"), key

    def test_it_has_the_recipes_keys(self) -> None:
        assert list(self.schema["properties"]) == list(Recipe.model_fields)
        assert self.schema["required"] == ["experts", "datasets"]
        expert = self.schema["$defs"]["ExpertBlock"]
        assert expert["required"] == ["model", "dataset"]
        assert expert["properties"]["library"]["enum"] == ["auto", "timm", "transformers"]

    def test_every_reference_leads_somewhere(self) -> None:
        found = []

        def walk(node: Any) -> None:
            if isinstance(node, dict):
                if "$ref" in node:
                    found.append(node["$ref"])
                    assert node["$ref"].removeprefix("#/$defs/") in self.schema["$defs"]
                for value in node.values():
                    walk(value)
            if isinstance(node, list):
                for value in node:
                    walk(value)

        walk(self.schema)
        assert len(set(found)) == 13


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ([0.333, 0.333, 0.333], [1 / 3, 1 / 3, 1 / 3]),
        ([[0.5, 0.25, 0.25], [0.1666, 0.3334, 0.4999]], None),
    ],
)
def test_betas_that_were_rounded_are_normalised_with_a_word(given: Any, made: Any) -> None:
    data: Data = {"betas": given}
    data["experts"] = [{"model": f"me/{i}", "dataset": "d"} for i in range(3)]
    data["datasets"] = {"d": {"path": "me/d"}}
    with pytest.warns(UserWarning, match="sum to 1 but for rounding"):
        recipe = Recipe.from_dict(data)
    rows = rows_of(recipe.coding_weights)
    assert all(abs(sum(row) - 1) < 1e-15 for row in rows)
    if made is not None:
        assert rows == (pytest.approx(tuple(made)),)
    else:
        assert rows[0] == (0.5, 0.25, 0.25)  # a row that is exact stays as it is
    assert Recipe.from_dict(recipe.dump()).dump() == recipe.dump()  # and says nothing

"""What one imports from coin_hf: documented names, one for every command."""

import ast
import inspect
from pathlib import Path

import pytest
from typer.main import get_command

import coin_hf
from coin_hf.cli.app import app
from coin_hf.recipe.blocks import FisherBlock


def test_every_name_is_there_and_documented() -> None:
    assert set(coin_hf.__all__) == set(coin_hf._HOME) <= set(dir(coin_hf))
    for name in coin_hf.__all__:
        found = getattr(coin_hf, name)
        assert found.__name__ == name
        assert inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="module 'coin_hf' has no attribute 'decode'"):
        print(coin_hf.decode)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(coin_hf.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module.removeprefix("coin_hf.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == coin_hf._HOME


def test_every_command_has_its_function() -> None:
    function = {"push": "push_folder", "fisher": "make_fisher", "design": None, "schema": None}
    function |= dict.fromkeys(("serve", "load", "simulate"))  # in the room `serve`, an extra
    function |= dict.fromkeys(("app", "space"))  # in the room `page`, another
    commands = get_command(app).commands  # type: ignore[attr-defined]
    names = [name for name, command in commands.items() if not command.hidden]
    for name in set(names) - {"demo"}:
        public = function.get(name, name.replace("-", "_"))
        assert public is None or public in coin_hf.__all__
    assert callable(coin_hf.ErasureCode.design)
    assert callable(coin_hf.Recipe.model_json_schema)


def test_defaults_are_those_of_a_recipe() -> None:
    given = inspect.signature(coin_hf.diagonal_fisher).parameters
    recipe = FisherBlock()
    assert given["estimator"].default == recipe.estimator
    assert given["probes"].default == recipe.probes
    assert given["batch_size"].default == recipe.batch_size

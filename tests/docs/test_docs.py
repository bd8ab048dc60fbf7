"""The docs: built strictly, found by search, and what they show runs."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import digits, make_world
from hub_clients import WRITER, environment
from hub_server import User, serve
from typer.main import get_command

import coin_hf
from coin_hf.cli.app import app
from coin_hf.cli.numbers import gathered
from coin_hf.recipe import Recipe
from coin_hf.serve.settings import ServeSettings, read_block
from coin_hf.serve.simulation import Scenario

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(PAGES.rglob("*.md"))]
}
WITH_CODE = [name for name, text in TEXTS.items() if "```python" in text and name != "README.md"]
"""README's script is run, and its output compared, in tests/recipes/test_readme.py."""


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_public_name_is_found_by_search(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {(entry["title"], entry["location"]) for entry in index["docs"]}
    for name in coin_hf.__all__:
        home = f"coin_hf.{coin_hf._HOME[name]}.{name}"
        defined = f"{getattr(coin_hf, name).__module__}.{name}"
        assert {(name, f"api/#{home}"), (name, f"api/#{defined}")} & found
    # Where a module has the name of its function, the page is to show the function.
    assert "doc-module" not in (site / "api" / "index.html").read_text(encoding="utf-8")
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.hidden or (f"coin-hf {name}", f"cli/#coin-hf-{name}") in found
    keys = "".join(
        entry["text"] for entry in index["docs"] if entry["location"] == "recipes/#a-recipe"
    )
    assert all(key in keys for key in Recipe.model_fields)


@pytest.mark.slow
def test_examples_of_docstrings_are_shown_as_code(site: Path) -> None:
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    examples = re.findall(r'<details class="example".*?</details>', text, re.DOTALL)
    assert examples
    assert all('<div class="highlight">' in each for each in examples)


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]* src="?(https?://[^">\s]+)|@import "?(https?:[^"]+)'
    )
    linked = re.compile(
        r'<link[^>]*rel="?(?:stylesheet|preconnect|icon)"?[^>]*href="?(https?:[^">\s]+)'
    )
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not loaded.findall(text), page
        assert not linked.findall(text), page


def lines(text: str) -> Iterator[list[str]]:
    """The commands of a page's shell blocks, split into words."""
    for block in blocks(text, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words:  # joined by && and ending in &
                end = next((k for k, word in enumerate(words) if word in ("&&", "&")), len(words))
                if words[:end]:
                    yield words[:end]
                words = words[end + 1 :]


WHOLE: dict[str, Any] = {
    "experts": [{"model": "me/low", "dataset": "low"}, {"model": "me/high", "dataset": "low"}],
    "datasets": {"low": {"path": "me/digits"}},
}
"""What an excerpt of a recipe is completed by."""


def check_overrides(command: str, overrides: list[str]) -> None:
    """Whatever `-o` changes is a key of what the command reads, and takes that value."""
    if command == "serve":
        read_block(ServeSettings, command, None, overrides)
    elif command == "simulate":
        read_block(Scenario, command, None, overrides)
    else:
        Recipe.from_dict(WHOLE).override(overrides)


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_those_of_the_command_line(name: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for words in lines(TEXTS[name]):
        if "coin_hf" in words:  # accelerate launch -m coin_hf ...
            words = ["coin-hf", *words[words.index("coin_hf") + 1 :]]
        if words[0] == "coin-hf":
            command, *arguments = gathered(words[1:])
            context = commands[command].make_context(command, arguments)
            check_overrides(command, context.params.get("override") or [])
        for word in words:
            if word.startswith("recipes/"):
                assert (ROOT / word).exists(), word
        if words[:2] == ["pip", "install"]:
            extras = re.search(r"\[([\w,]+)\]", " ".join(words))
            known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            for extra in extras[1].split(",") if extras else ():
                assert re.search(rf"^{extra} = \[", known, re.MULTILINE), extra


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "`coin-hf " in text])
def test_commands_within_sentences_have_their_options(name: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for span in re.findall(r"`coin-hf ([^`]+)`", TEXTS[name]):
        command, *words = span.partition("&&")[0].split()
        options = {each for parameter in commands[command].params for each in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, span


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "```yaml" in text])
def test_recipes_are_recipes(name: str) -> None:
    for block in blocks(TEXTS[name], "yaml"):
        said = yaml.safe_load(block)
        if "urls" in said:
            ServeSettings.model_validate(said)
            continue
        for expert in said.get("experts", ()):
            if "datasets" not in said:  # an excerpt
                expert["dataset"] = "low"
        Recipe.from_dict({**WHOLE, **said})


@pytest.mark.slow
@pytest.mark.hub
@pytest.mark.parametrize("name", WITH_CODE)
def test_python_blocks_run(name: str, tmp_path: Path) -> None:
    """A page's blocks one after the other, against a Hub that holds what the pages name."""
    make_world(tmp_path)
    digits(slice(0, 1))[0]["image"].save(tmp_path / "digit.png")
    script = "\n".join(blocks(TEXTS[name], "python"))
    made = script.startswith("from coin_hf import CodedEnsemble\n")  # begins where encoding ended
    with serve(tmp_path / "hub", tokens={WRITER: User("me", write=True)}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", PREPARE.format(made=made) + script],
            cwd=ROOT if name.endswith("api.md") else tmp_path,  # where the metric's path lies
            env={**environment(hub.endpoint, tmp_path / "home", WRITER), "WORLD": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr


PREPARE = """
import os
from pathlib import Path

from huggingface_hub import HfApi

world = Path(os.environ["WORLD"])
for name, kind in (("low", "model"), ("high", "model"), ("digits", "dataset")):
    HfApi().create_repo(f"me/{{name}}", repo_type=kind)
    HfApi().upload_folder(repo_id=f"me/{{name}}", folder_path=world / name, repo_type=kind)
if {made}:
    from coin_hf import Recipe, encode

    encode(Recipe.from_yaml(world / "recipe.yaml")).save_pretrained("coded")
"""


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES.rglob("*.md"):
        assert page.relative_to(PAGES).as_posix() in contents


def test_links_of_the_readme_lead_to_files() -> None:
    targets = re.findall(
        r'\]\(([^)#]+)(?:#[\w-]+)?\)|srcset="([^"]+)"|src="([^"]+)"', TEXTS["README.md"]
    )
    for target in filter(None, (part for parts in targets for part in parts)):
        assert target.startswith("https://") or (ROOT / target).is_file(), target

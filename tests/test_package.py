"""The wheel that is built: what it holds, and the version; what a release adds."""

import re
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from recipe_scripts import script

import coin_hf

ROOT = Path(coin_hf.__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    assert path.name == f"coin_hf-{coin_hf.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    info = f"coin_hf-{coin_hf.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"coin_hf", info}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "coin_hf").rglob("*.py")}
    others = {
        "coin_hf/py.typed",
        "coin_hf/demo/demo.yaml",
        "coin_hf/metrics/nda/README.md",
        "coin_hf/metrics/nda/requirements.txt",
    }
    assert "coin_hf/metrics/nda/app.py" in modules
    assert {name for name in names if name.startswith("coin_hf/")} == modules | others
    assert f"{info}/licenses/LICENSE" in names
    demo = (ROOT / "recipes" / "demo.yaml").read_bytes()
    assert wheel.read("coin_hf/demo/demo.yaml") == demo  # the text, not a link


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"coin_hf-{coin_hf.__version__}.dist-info"
    said = message_from_string(wheel.read(f"{info}/METADATA").decode())
    assert said["Name"] == "coin-hf"
    assert said["Version"] == coin_hf.__version__
    assert said["Requires-Python"] == ">=3.10"
    assert said["License-Expression"] == "Apache-2.0"
    assert {"demo", "test", "dev"} <= set(said.get_all("Provides-Extra"))
    assert "coin-hf = coin_hf.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_version_stands_in_one_place() -> None:
    assert f'__version__ = "{coin_hf.__version__}"' in (ROOT / "coin_hf/__init__.py").read_text()
    places = ["pyproject.toml", *(str(path) for path in (ROOT / "coin_hf").rglob("*.py"))]
    holding = [
        Path(place).name
        for place in places
        if f'"{coin_hf.__version__}"' in (ROOT / place).read_text()
    ]
    assert holding == ["__init__.py"]


def test_the_citation_and_the_changelog_name_the_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == coin_hf.__version__
    newest = re.search(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest is not None
    assert newest[1] in (coin_hf.__version__, "Unreleased")


def test_a_releases_readme_links_to_its_repository() -> None:
    """PyPI shows README alone: nothing in it may be relative, and all must be in the repository."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with script(ROOT / ".ci" / "absolute_links.py") as module:
        text = module["absolute"](readme, "https://example.org/me/coin", "v9")
    links = re.findall(r'\]\(([^)]+)\)|src(?:set)?="([^"]+)"', text)
    targets = ["".join(parts) for parts in links]
    assert targets
    assert all(target.startswith("https://") for target in targets)
    own = [target for target in targets if target.startswith("https://example.org/me/coin/")]
    for target in own:
        kind, tag, path = target.removeprefix("https://example.org/me/coin/").split("/", 2)
        assert (kind, tag) == ("raw" if path.endswith(".svg") else "blob", "v9")
        assert (ROOT / path.partition("#")[0]).is_file()
    assert "https://arxiv.org/abs/2409.01420" in targets

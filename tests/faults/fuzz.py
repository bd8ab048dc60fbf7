"""Damage every file that is read, many times: each run ends in success or in one sentence.

`PYTHONPATH=tests python -m faults.fuzz` runs all of it and renders tests/faults.md; the test
suite runs a part.
"""

import io
import json
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from builders import (
    digits,
    make_world,
    recipe_dict,
    save_adapter,
    save_timm,
    save_transformers,
    timm_model,
)
from faults.mutations import damaged_bytes, damaged_json
from PIL import Image

from coin_hf import CodedEnsemble, InputError, Recipe, load_expert, load_fisher, recode
from coin_hf.comparison.compare import compare
from coin_hf.data.images import LabelledImages
from coin_hf.encoding.fisher_checkpoint import FisherFile
from coin_hf.fisher import Partial
from coin_hf.pipeline import encode
from coin_hf.recipe.blocks import DatasetBlock

SECONDS, MEBIBYTES = 10.0, 1024
"""Bounds of one run."""
LONGEST = 2000
"""Characters of the longest message: all mistakes of a recipe are listed at once."""


@dataclass(frozen=True)
class Target:
    """A file that is read, and how."""

    name: str
    file: Path
    read: Callable[[], Any]
    count: int
    """Damaged copies in a whole run."""


@dataclass
class Outcome:
    """What the damaged copies of one file led to."""

    read: int = 0
    sentences: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    largest: float = 0.0
    """Growth of the peak of memory, MiB."""


def run(target: Target, count: int, seed: int = 0) -> Outcome:
    """Damage a file `count` times and read it; its content is restored."""
    good, found = target.file.read_bytes(), Outcome()
    try:
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            as_json = target.file.suffix == ".json" and i % 4
            bad = damaged_json(json.loads(good), rng) if as_json else damaged_bytes(good, rng)
            target.file.write_bytes(bad)
            with _measured(found):
                _one(target, found, f"{target.name} {i}")
    finally:
        target.file.write_bytes(good)
    return found


def _one(target: Target, found: Outcome, which: str) -> None:
    try:
        target.read()
        found.read += 1
    except InputError as error:
        found.sentences += 1
        if len(str(error)) > LONGEST:
            found.wrong.append(f"{which}: a message of {len(str(error))} characters")
    except BaseException as error:
        found.wrong.append(f"{which}: {type(error).__name__}: {str(error)[:200]}")


@contextmanager
def _measured(found: Outcome) -> Iterator[None]:
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before, start = _peak(), time.perf_counter()
    yield
    found.slowest = max(found.slowest, time.perf_counter() - start)
    found.largest = max(found.largest, _peak() - before)
    if found.slowest > SECONDS or found.largest > MEBIBYTES:
        found.wrong.append(f"{found.slowest:.1f} s, {found.largest:.0f} MiB")


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def targets(folder: Path) -> list[Target]:
    """Write one of everything into a folder, and say how each file is read."""
    timm, vit = folder / "timm", folder / "vit"
    save_timm(timm, timm_model(0), label_names=list("abcdefghij"), license="mit",
              model_args={"in_chans": 3})  # fmt: skip
    save_transformers(vit)
    adapter = save_adapter(vit, folder / "adapter")
    make_world(folder / "world", fisher={"save": True}, samples={"per_expert": 4})
    world, coded = folder / "world", folder / "world/coded"
    encode(Recipe.from_yaml(world / "recipe.yaml")).save_pretrained(coded)
    recoded = folder / "recoded"

    def again() -> None:
        recode(coded, recoded, betas=[0.6, 0.4], overwrite=True)

    def loaded() -> None:
        CodedEnsemble.from_pretrained(coded, experts=True)

    rows = {"output": str(folder / "compared"), "compare": {"coders": ["averaging"]}}
    comparison = Recipe.from_dict(recipe_dict(world, samples={"per_expert": 4}, **rows))
    compare(comparison)
    row = min((folder / "compared/rows").iterdir())
    partial = FisherFile(folder / "partial.safetensors")
    sums = dict(timm_model(0).named_parameters())
    partial.save(Partial(4, 2, 5, {name: value.detach() for name, value in sums.items()}),
                 final=True)  # fmt: skip
    expert = [
        Target("config.json (timm)", timm / "config.json", lambda: load_expert(str(timm)), 2000),
        Target("model.safetensors (timm)", timm / "model.safetensors",
               lambda: load_expert(str(timm)), 500),
        Target("README.md (timm)", timm / "README.md", lambda: load_expert(str(timm)), 500),
        Target("config.json (transformers)", vit / "config.json",
               lambda: load_expert(str(vit)), 1500),
        Target("preprocessor_config.json", vit / "preprocessor_config.json",
               lambda: load_expert(str(vit)), 800),
        Target("model.safetensors (transformers)", vit / "model.safetensors",
               lambda: load_expert(str(vit)), 300),
        Target("adapter_config.json", adapter / "adapter_config.json",
               lambda: load_expert(str(adapter)), 500),
        Target("adapter_model.safetensors", adapter / "adapter_model.safetensors",
               lambda: load_expert(str(adapter)), 200),
        Target("config.json (an adapter's base)", vit / "config.json",
               lambda: load_expert(str(adapter)), 200),
    ]  # fmt: skip
    records = [
        Target("coin.json", coded / "coin.json", loaded, 1000),
        Target("result.json", coded / "result.json", loaded, 700),
        Target("fisher/low.safetensors, recoding", coded / "fisher/low.safetensors", again, 300),
        Target("fisher/low.safetensors, loading", coded / "fisher/low.safetensors",
               lambda: load_fisher(coded, "low"), 500),
        Target("recipe.yaml", world / "recipe.yaml",
               lambda: Recipe.from_yaml(world / "recipe.yaml"), 1500),
        Target("a row of a comparison", row, lambda: compare(comparison), 200),
        Target("recipe.json of a comparison", folder / "compared/recipe.json",
               lambda: compare(comparison), 200),
        Target("a partial Fisher", partial.path, partial.load, 300),
    ]  # fmt: skip
    return [*expert, *records, *_data(folder / "data")]


def _data(folder: Path) -> list[Target]:
    """Datasets in every form that is read."""
    data = digits(slice(0, 12))
    parquet = folder / "parquet"
    parquet.mkdir(parents=True)
    data.to_parquet(parquet / "train-00000-of-00001.parquet")
    (parquet / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: train-*\n---\n"
    )
    saved = folder / "saved"
    data.save_to_disk(str(saved))
    images = folder / "images/train"
    images.mkdir(parents=True)
    for i, row in enumerate(data):
        row["image"].save(images / f"{i}.png")
    (images / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{i}.png,{row['label']}\n" for i, row in enumerate(data))
    )

    def read(place: Path, **block: Any) -> Callable[[], None]:
        def reading() -> None:
            given = DatasetBlock(path=str(place), **block)
            rows = LabelledImages("d", given, "train", 10).draw(4, seed=[0])
            for each in rows:
                each.prepared(np.asarray)

        return reading

    return [
        Target("parquet", parquet / "train-00000-of-00001.parquet", read(parquet), 300),
        Target("README.md (dataset)", parquet / "README.md", read(parquet), 200),
        Target("dataset_info.json", saved / "dataset_info.json", read(saved), 500),
        Target("state.json", saved / "state.json", read(saved), 300),
        Target("metadata.csv", images / "metadata.csv",
               read(folder / "images", label="label"), 150),
    ]  # fmt: skip


FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("JPEG", "RGB", {}),
    "JPEG with EXIF": ("JPEG", "RGB", {"exif": True}),
    "JPEG, CMYK": ("JPEG", "CMYK", {}),
    "PNG": ("PNG", "RGB", {}),
    "PNG with EXIF": ("PNG", "RGBA", {"exif": True}),
    "PNG, palette": ("PNG", "P", {}),
    "TIFF": ("TIFF", "RGB", {}),
    "TIFF, LZW": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "GIF": ("GIF", "P", {}),
    "WebP": ("WEBP", "RGB", {"exif": True}),
    "BMP": ("BMP", "RGB", {}),
    "PPM": ("PPM", "RGB", {}),
    "ICO": ("ICO", "RGBA", {}),
    "TGA": ("TGA", "RGB", {}),
    "JPEG 2000": ("JPEG2000", "RGB", {}),
    "PCX": ("PCX", "RGB", {}),
}
"""Format of Pillow, mode and settings of each kind of image file."""
IMAGES = 5000


def run_images(count: int, seed: int = 0) -> dict[str, Outcome]:
    """Damage image files of every format, and decode and prepare them as rows of a dataset."""
    from coin_hf.data.images import ImageRow

    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    expert = load_small_expert()
    found: dict[str, Outcome] = {}
    for kind, (form, mode, given) in FORMATS.items():
        settings = {k: exif if k == "exif" else v for k, v in given.items()}
        buffer = io.BytesIO()
        Image.fromarray(noise).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode).save(
            buffer, form, **settings
        )
        outcome = found.setdefault(kind, Outcome())
        for i in range(-(-count // len(FORMATS))):
            bad = damaged_bytes(buffer.getvalue(), np.random.default_rng([seed, i]))
            row = ImageRow(0, 0, {"bytes": bad, "path": None}, "row 0")
            target = Target(kind, Path(), lambda row=row: row.prepared(expert), 0)  # type: ignore[misc]
            with _measured(outcome):
                _one(target, outcome, f"{kind} {i}")
    return found


def load_small_expert() -> Callable[[Image.Image], Any]:
    """A small network's preprocessing."""
    with tempfile.TemporaryDirectory() as folder:
        save_timm(Path(folder) / "e", timm_model(0))
        return load_expert(str(Path(folder) / "e")).preprocessing


def page(found: dict[str, Outcome], seconds: float) -> str:
    """Render the counts as Markdown."""
    lines = [
        "# What damaged files lead to",
        "",
        "Every file that coin-hf reads was damaged many times: bytes flipped, cut and inserted,",
        "and JSON values replaced by hostile ones, removed, swapped or nested. Each must end in",
        f"success or in one sentence, within {SECONDS:.0f} s and {MEBIBYTES} MiB. Rendered by",
        "`PYTHONPATH=tests python -m faults.fuzz`; the test suite runs a part of it.",
        "",
        "| file | runs | read | a sentence | anything else | slowest, s | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        runs = each.read + each.sentences + len(each.wrong)
        lines.append(
            f"| {name} | {runs} | {each.read} | {each.sentences} | {len(each.wrong)} | "
            f"{each.slowest:.2f} | {each.largest:.0f} |"
        )
    total = Counter[str]()
    for each in found.values():
        total.update(read=each.read, sentences=each.sentences, wrong=len(each.wrong))
    runs = sum(total.values())
    lines += [
        "",
        f"{runs:,} runs in {seconds:.0f} s: {total['read']:,} read, {total['sentences']:,} "
        f"sentences, {total['wrong']} of anything else.",
        "",
    ]
    return "\n".join(lines)


def kills(folder: Path) -> str:
    """Count the file operations of every writing command, at each of which the suite kills it."""
    from faults.kills import operations
    from faults.test_kills import COMMANDS, fresh

    start = folder / "start"
    make_world(start, fisher={"save": True}, samples={"per_expert": 4})
    encode(Recipe.from_yaml(start / "recipe.yaml")).save_pretrained(start / "coded")
    rows = []
    for name, (make, _) in COMMANDS.items():
        place = fresh(start, folder / "w")
        rows.append(f"| `{name}` | {operations(place, make(place))} |")
    return "\n".join(
        [
            "## Kills",
            "",
            "`test_kills.py` kills each command (SIGKILL) just before each of its file operations.",
            "What is left must be the old output or the new one, whole; run again, the command",
            "must give the same bytes as without a kill, and no draft may stay.",
            "",
            "| command | file operations, a kill at each |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Run everything and write the page."""
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # commands run in forked processes, which have no other threads
    start, found = time.perf_counter(), dict[str, Outcome]()
    with tempfile.TemporaryDirectory() as folder:
        killed = kills(Path(folder) / "kills")
        for target in targets(Path(folder)):
            with redirect_stderr(io.StringIO()):
                found[target.name] = run(target, target.count)
            print(target.name, found[target.name], flush=True)
    with redirect_stderr(io.StringIO()):
        found |= run_images(IMAGES)
    text = f"{page(found, time.perf_counter() - start)}\n{killed}"
    Path(__file__).parent.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

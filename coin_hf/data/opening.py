"""Open each dataset once: from the Hub, a folder of files, or a `save_to_disk` folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import LocalEntryNotFoundError

from coin_hf.errors import InputError, reason_of
from coin_hf.hub.client import COMMIT, local_folder
from coin_hf.hub.hashes import folder_revision
from coin_hf.hub.sentences import sentences
from coin_hf.recipe.blocks import DatasetBlock


class Datasets:
    """The datasets of a run; blocks that name the same one share it, whatever their filters."""

    def __init__(self) -> None:
        """Start with none open."""
        self._sources: dict[tuple[str, str | None, str | None, bool], Any] = {}

    def split(self, name: str, block: DatasetBlock, split: str) -> Dataset | IterableDataset:
        """Return one split.

        Args:
            name: The dataset's name in the recipe, for messages.
            block: Its location.
            split: The split.

        Returns:
            Its rows, streamed if the block asks for it.

        Raises:
            InputError: If the dataset or its split cannot be found or read.
        """
        try:
            with sentences(block.path, block.revision, "dataset", others=False):
                return self._split(block, split)
        except InputError:
            raise
        except Exception as error:  # a reader raises anything on damaged files
            cause = error.__cause__ or error
            raise InputError(
                f"dataset '{name}' ({block.path}, split '{split}') cannot be opened: "
                f"{reason_of(cause)}{_pattern(block.path)}"
            ) from error

    def row_numbers(self, block: DatasetBlock, split: str) -> np.ndarray | None:
        """Number the rows of a split over all rows of the dataset, whatever slice they are in.

        Args:
            block: The dataset's location.
            split: The split, which `split` has opened.

        Returns:
            Shape (rows,); equal numbers are the same row. None where the dataset is streamed.
        """
        if block.streaming:
            return None
        source = self._source(block)
        lengths = _lengths(source)
        first = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
        spans = _spans(source, split)
        return np.concatenate([first[name] + np.arange(*span) for name, *span in spans])

    def _split(self, block: DatasetBlock, split: str) -> Dataset | IterableDataset:
        """Return one split; the library's own errors pass through."""
        source = self._source(block)
        if isinstance(source, Mapping):  # saved to disk: the same slices as of any other folder
            parts = [source[name].select(range(*span)) for name, *span in _spans(source, split)]
            data = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
            return data.to_iterable_dataset() if block.streaming else data
        if block.streaming:
            return source.as_streaming_dataset(split=split)
        data = source.as_dataset(split=split)
        if local_folder(block.path) is None and not _is_commit(data, block.revision):
            raise LocalEntryNotFoundError("the cache holds another commit")
        return data

    def _source(self, block: DatasetBlock) -> Any:
        """Return a dataset, prepared on first use."""
        key = (block.path, block.config, block.revision, block.streaming)
        if key not in self._sources:
            self._sources[key] = _prepared(block)
        return self._sources[key]


def _pattern(path: str) -> str:
    """Say that a folder's name is the cause, where `datasets` takes it for something else."""
    found = next((sign for sign in ("[", "::") if sign in path), None)
    if found is None or local_folder(path) is None:
        return ""
    return f"; `datasets` cannot read below a folder with '{found}' in its name: rename it"


def _lengths(source: Any) -> dict[str, int]:
    """Return the number of rows of each split."""
    if isinstance(source, Mapping):
        return {name: len(data) for name, data in source.items()}
    return {name: info.num_examples for name, info in (source.info.splits or {}).items()}


def _spans(source: Any, split: str) -> list[tuple[str, int, int]]:
    """Resolve a split such as `train[:50%]+test` to rows of whole splits: name, start, stop."""
    lengths = _lengths(source)
    said = "+".join(lengths) if split == "all" else split
    found = datasets.ReadInstruction.from_spec(said).to_absolute(lengths)
    return [
        (each.splitname, each.from_ or 0, lengths[each.splitname] if each.to is None else each.to)
        for each in found
    ]


def _prepared(block: DatasetBlock) -> Any:
    """Return a mapping of splits, or a builder, its files downloaded unless streamed."""
    folder = local_folder(block.path)
    if folder is not None and _saved_to_disk(folder):
        saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, Mapping) else {str(saved.split or "train"): saved}
    if folder is None:
        builder = datasets.load_dataset_builder(block.path, block.config, revision=block.revision)
    else:
        # A folder whose README lists its files is cached by their names alone: a changed file
        # would be read as it was. The folder's hash keeps each content apart.
        kept = Path(datasets.config.HF_DATASETS_CACHE, "coin-hf", folder_revision(folder)[7:23])
        builder = datasets.load_dataset_builder(str(folder), block.config, cache_dir=str(kept))
    if not block.streaming:
        builder.download_and_prepare()
    return builder


def _is_commit(data: Dataset | IterableDataset, revision: str | None) -> bool:
    """Return whether a Hub dataset is at the requested commit.

    Offline, `datasets` uses the newest commit in its cache, whichever was requested.
    """
    if revision is None or not COMMIT.fullmatch(revision) or not isinstance(data, Dataset):
        return True
    return all(Path(file["filename"]).parent.name == revision for file in data.cache_files)


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def source(block: DatasetBlock) -> tuple[str, str | None, str | None]:
    """Say where a dataset comes from, whatever its split, columns and filter.

    Args:
        block: The dataset, its revision pinned.

    Returns:
        Its location, configuration and revision: equal ones hold the same rows.
    """
    return block.path, block.config, block.revision

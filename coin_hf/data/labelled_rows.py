"""Read one split of a HF dataset as labelled rows of any kind: filter, draw, batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Generic

import numpy as np
from datasets import Dataset

from coin_hf.data.columns import cast_named, described, find_column
from coin_hf.data.labels import Owner, class_numbers, rows_by_class
from coin_hf.data.opening import Datasets, source
from coin_hf.data.rows import UNKNOWN, AnyRow, known, shuffled, without_damaged
from coin_hf.errors import InputError
from coin_hf.recipe.blocks import DatasetBlock


class LabelledRows(ABC, Generic[AnyRow]):
    """One split of one dataset, restricted to the rows that pass the label filter."""

    noun: ClassVar[str]
    """What a row holds, in messages."""
    readable: ClassVar[str]
    """What can be done with it where it is not damaged."""
    lacking: ClassVar[str]
    """What rows are called that `skip_damaged` leaves out."""

    def __init__(
        self,
        name: str,
        block: DatasetBlock,
        split: str,
        num_classes: int,
        datasets: Datasets | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Open a split.

        Args:
            name: The dataset's name in the recipe, for messages.
            block: Its location, columns and label filter.
            split: The split to open.
            num_classes: K; labels must be below it.
            datasets: Datasets already open; by default none.
            owner: The expert whose classes the labels are; by default class numbers are taken as
                they are.

        Raises:
            InputError: If the dataset, its split or its columns cannot be found.
        """
        self.name, self.split, self.num_classes = name, split, num_classes
        self.own_classes = num_classes if owner is None or not owner.rows else len(owner.rows)
        datasets = datasets or Datasets()
        data = datasets.split(name, block, split)
        self.source, self.place = source(block), f"{name}:{split}"
        self.numbers = datasets.row_numbers(block, split)
        if data.features is None:
            raise InputError(
                f"dataset '{name}' does not declare its columns when streamed: "
                f"set datasets.{name}.streaming to false"
            )
        text = str(getattr(data.features.get(block.label or ""), "dtype", ""))
        data = cast_named(name, data, block.image, block.label)
        self.features = dict(data.features)
        self.contents = self._contents(block)
        self.skip_damaged = block.skip_damaged
        self.damaged: set[int] = set()
        """Positions of the rows that were left out because they cannot be read."""
        self.label_column = find_column(name, self.features, "label", block.label)
        self.kept = self._kept(block.labels)
        if "string" in text and owner is not None and not owner.classes:
            raise InputError(
                f"dataset '{name}' has text in its label column '{block.label}', but expert "
                f"'{owner.name}' has no class names to match it with: give a column of class "
                "numbers, or an expert whose config.json names its classes"
            )
        self.rows = rows_by_class(name, self.class_names, self.kept, block, owner)
        columns = [c for c in (*self.contents, self.label_column) if c]
        self.data = self._undecoded(data.select_columns(columns))  # no other column is read

    @abstractmethod
    def _contents(self, block: DatasetBlock) -> tuple[str, ...]:
        """Find the columns that hold the input."""

    def _undecoded(self, data: Any) -> Any:
        """Keep the inputs from being decoded before they are used."""
        return data

    @abstractmethod
    def _made(self, position: int, truth: int | None, contents: Any, origin: str) -> AnyRow:
        """Make a row of what its columns hold."""

    @property
    def count_classes(self) -> int:
        """How many classes the label filter lets pass."""
        return self.own_classes if self.kept is None else len(self.kept)

    @property
    def class_names(self) -> list[str]:
        """The names of the dataset's classes, if any."""
        feature = self.features.get(self.label_column or "")
        return list(getattr(feature, "names", None) or [])

    def check_usable_for_tests(self) -> None:
        """Refuse a split on which no accuracy can be measured.

        Raises:
            InputError: If it has no label column, or no row passes the filter.
        """
        if self.label_column is None:
            raise InputError(
                f"dataset '{self.name}' has no label column to measure NDA with, only "
                f"{described(self.features)}: name one as datasets.{self.name}.label"
            )
        if isinstance(self.data, Dataset):
            empty = not len(self._positions(self.data))
        else:
            empty = next(self._stream(), None) is None
        if empty:
            raise InputError(
                f"dataset '{self.name}' has no {self.noun} in its split '{self.split}' that passes "
                "its label filter: choose another split or filter"
            )

    def draw(self, count: int, *, seed: Sequence[int]) -> list[AnyRow]:
        """Draw rows without replacement, with a separate random state.

        A streamed split is read from its start through a shuffle buffer of 1000 rows.

        Args:
            count: Number of rows.
            seed: Entropy of the draw.

        Returns:
            The rows, in the order drawn.

        Raises:
            InputError: If there are fewer rows.
        """
        rng = np.random.default_rng(list(seed))
        if isinstance(self.data, Dataset):
            positions = self._positions(self.data)
            available = len(positions)
            few = count > available
            chosen = positions[:0] if few else rng.choice(positions, count, replace=False)
            rows = self._readable(self._rows_at(chosen))
            if len(rows) < count <= available:  # others in place of damaged ones
                rest = rng.permutation(np.setdiff1d(positions, chosen))
                found = (row for i in rest for row in self._readable(self._rows_at(np.array([i]))))
                rows += islice(found, count - len(rows))
                available = len(rows)
        else:
            stream = (
                row for each in shuffled(self._stream(), rng) for row in self._readable([each])
            )
            rows = list(islice(stream, count))
            available = len(rows)
        if available < count:
            filtered = f" with the labels {sorted(self.kept)}" if self.kept is not None else ""
            raise InputError(
                f"dataset '{self.name}' has only {available} {self.noun}s{filtered} in its split "
                f"'{self.split}', but {count} were asked for: ask for fewer, or choose another "
                "split or label filter"
            )
        return rows

    def shared_rows(self, other: "LabelledRows[Any]") -> int:
        """Count the rows that pass the filters of both, whatever their splits are called.

        Args:
            other: Another split, of this dataset or not.

        Returns:
            The number of rows; 0 where one is streamed, whose rows have no numbers.
        """
        if self.source != other.source or self.numbers is None or other.numbers is None:
            return 0
        ours, theirs = self.numbers[self.positions()], other.numbers[other.positions()]
        return len(np.intersect1d(ours, theirs))

    def positions(self) -> np.ndarray:
        """Positions of all rows that pass the label filter, ascending.

        Raises:
            InputError: If the split is streamed.
        """
        if not isinstance(self.data, Dataset):
            raise InputError(
                f"dataset '{self.name}' is streamed, which has no positions: set "
                f"datasets.{self.name}.streaming to false"
            )
        return self._positions(self.data)

    def row(self, position: int) -> AnyRow:
        """Return the row at a position."""
        return next(self._rows_at(np.array([position])))

    def batches(
        self, batch_size: int, *, limit: int | None, seed: Sequence[int], shard: tuple[int, int]
    ) -> Iterator[tuple[int, list[AnyRow]]]:
        """Read the split in batches, of which each of n processes takes every n-th.

        The content of a batch does not depend on the number of processes.

        Args:
            batch_size: Rows in a batch; the last may be smaller.
            limit: Largest number of rows, drawn at random; None for all, in order.
            seed: Entropy of that draw.
            shard: This process's rank and the number of processes.

        Yields:
            The batch's index and its rows, without damaged ones if the recipe says so.
        """
        rank, world = shard
        if isinstance(self.data, Dataset):
            positions = self._positions(self.data)
            if limit is not None and limit < len(positions):
                rng = np.random.default_rng(list(seed))
                positions = np.sort(rng.choice(positions, limit, replace=False))
            starts = range(0, len(positions), batch_size)
            for number, start in list(enumerate(starts))[rank::world]:
                rows = self._readable(self._rows_at(positions[start : start + batch_size]))
                if rows:
                    yield number, rows
            return
        stream = self._stream()
        if limit is not None:
            stream = islice(shuffled(stream, np.random.default_rng(list(seed))), limit)
        number = 0
        while batch := list(islice(stream, batch_size)):
            if number % world == rank and (rows := self._readable(batch)):
                yield number, rows
            number += 1

    def _readable(self, rows: Iterable[AnyRow]) -> list[AnyRow]:
        """Leave out damaged rows if the recipe says so, and remember them."""
        if not self.skip_damaged:
            return list(rows)
        sound, damaged = without_damaged(rows)
        self.damaged |= damaged
        return sound

    def _kept(self, wanted: Sequence[int | str] | None) -> set[int] | None:
        """Convert the label filter to class indices."""
        if wanted is None:
            return None
        if self.label_column is None:
            raise InputError(
                f"dataset '{self.name}' has a label filter but no label column: its columns are "
                f"{described(self.features)}; name one as datasets.{self.name}.label"
            )
        return class_numbers(self.name, wanted, self.class_names)

    def _positions(self, data: Dataset) -> np.ndarray:
        """Positions of the rows that pass the label filter, ascending."""
        if self.label_column is None:
            return np.arange(len(data))
        labels = np.array([known(label) for label in data[self.label_column][:]], dtype=np.int64)
        kept = np.arange(len(data))
        if self.kept is not None:
            kept = np.flatnonzero(np.isin(labels, sorted(self.kept)))
        for label in np.unique(labels[kept]):
            if not UNKNOWN <= self._class(int(label)) < self.num_classes:
                self._check_label(int(label), int(kept[labels[kept] == label][0]))
        return kept

    def _rows_at(self, positions: np.ndarray) -> Iterator[AnyRow]:
        columns = self.data[positions.tolist()]
        labels = columns[self.label_column] if self.label_column else [None] * len(positions)
        contents = zip(*(columns[name] for name in self.contents), strict=True)
        for position, each, label in zip(positions.tolist(), contents, labels, strict=True):
            yield self._row(position, known(label), each)

    def _stream(self) -> Iterator[AnyRow]:
        for position, columns in enumerate(self.data):
            label = known(columns[self.label_column] if self.label_column else None)
            if self.kept is None or label in self.kept:
                self._check_label(label, position)
                yield self._row(position, label, tuple(columns[name] for name in self.contents))

    def _row(self, position: int, label: int, contents: Any) -> AnyRow:
        origin = f"row {position} of the split '{self.split}' of dataset '{self.name}'"
        truth = None if label == UNKNOWN else self._class(label)
        return self._made(position, truth, contents, origin)

    def _class(self, label: int) -> int:
        """Translate a class number of the dataset to the row of the logits."""
        if self.rows is None or label == UNKNOWN:
            return label
        return self.rows.get(label, self.num_classes)  # beyond all: refused

    def _check_label(self, label: int, position: int) -> None:
        if not UNKNOWN <= self._class(label) < self.num_classes:
            raise InputError(
                f"dataset '{self.name}' has the label {label} in row {position} of '{self.split}', "
                f"but the experts know {self.own_classes} classes (0 to {self.own_classes - 1}): "
                "give the dataset they were fine-tuned on, or filter its labels"
            )

"""Share a computation among processes: each one's part of the work, and sums over all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor
from tqdm.auto import tqdm

Items = TypeVar("Items", bound=Sequence[Any] | Tensor)


@dataclass(frozen=True)
class Processes:
    """This process among those that share a computation; by default it is the only one.

    With an `accelerate.Accelerator`, each of n processes takes every n-th item and keeps sums
    instead of means, which are added at the end. Nothing is padded, so no item counts twice.
    """

    rank: int = 0
    """Index of this process, from 0."""
    world: int = 1
    """Number of processes."""
    accelerator: Any = None

    @classmethod
    def of(cls, accelerator: Any) -> "Processes":
        """Return the processes of an accelerator.

        Args:
            accelerator: An `accelerate.Accelerator`; None for this process alone.

        Returns:
            The processes.
        """
        if accelerator is None:
            return cls()
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def part(self) -> slice:
        """The items of this process: rank, rank + world, rank + 2 world, ..."""
        return slice(self.rank, None, self.world)

    def share(self, items: Items) -> Items:
        """Return this process's part: every n-th item.

        Args:
            items: The same in every process.

        Returns:
            The items of `part`.
        """
        return items[self.part]  # type: ignore[return-value]  # a slice has the same type

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over the processes.

        Args:
            value: This process's part, on its device.

        Returns:
            The sum, the same in every process.
        """
        return value if self.world == 1 else self.accelerator.reduce(value, "sum")

    def gather(self, parts: list[Any]) -> list[Any]:
        """Concatenate lists of objects over the processes.

        Args:
            parts: This process's list.

        Returns:
            The joined list, the same in every process.
        """
        if self.world == 1:
            return parts
        from accelerate.utils import gather_object  # the numeric core runs without accelerate

        return list(gather_object(parts))

    def bar(
        self,
        title: str,
        *,
        show: bool,
        unit: str = "it",
        total: int | None = None,
        of: Iterable[Any] | None = None,
    ) -> Any:
        """Make a progress bar on stderr.

        Args:
            title: Its label.
            show: Whether to show it; only the main process does.
            unit: Unit of the count.
            total: Total count, if known.
            of: Iterable to wrap.

        Returns:
            A `tqdm` bar.
        """
        return tqdm(of, desc=title, unit=unit, total=total, disable=not show or self.rank != 0)


ALONE = Processes()
"""This process alone."""

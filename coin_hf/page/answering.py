"""Answer one input in two ways: by the expert itself, and decoded as if it were missing."""

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from coin_hf.ensemble import CodedEnsemble
from coin_hf.erasure.alone import closest_coded
from coin_hf.errors import InputError
from coin_hf.experts.heads import columns
from coin_hf.networks.inputs import fit_to, stack
from coin_hf.networks.logits import call

REPEATS = 3
"""Timed runs of each way, whose median is shown."""
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Answer:
    """Raw logits of an expert's own classes in its own order, and how long they took."""

    logits: Tensor
    """Shape (K_i,), on the CPU."""
    seconds: float
    """Median over `REPEATS` runs after one that is not counted."""
    networks: int
    """Networks that ran, one after another."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of one expert's answer to one input."""

    labels: tuple[str, ...]
    """The expert's K_i class names."""
    own: Answer | None
    """None where the expert is switched off."""
    decoded: Answer | None
    """None where too many others are switched off to decode it."""
    alone: int
    """The class that a coded model names alone, among the expert's own."""

    @property
    def agree(self) -> bool | None:
        """Whether both name the same class; None where there is but one."""
        if self.own is None or self.decoded is None:
            return None
        return bool(self.own.logits.argmax() == self.decoded.logits.argmax())

    @property
    def difference(self) -> float | None:
        """The largest absolute difference of logits; None where there is but one."""
        if self.own is None or self.decoded is None:
            return None
        return float((self.own.logits - self.decoded.logits).abs().max())


def erased(ensemble: CodedEnsemble, asked: str, off: Collection[str]) -> list[str]:
    """Return the experts that are missing where an expert's answer is decoded: it, and all off.

    Args:
        ensemble: The ensemble.
        asked: The expert's name.
        off: Names of the experts that are switched off.

    Returns:
        Names, in the experts' order.
    """
    return [name for name in ensemble.names if name == asked or name in off]


def refusal(ensemble: CodedEnsemble, asked: str, off: Collection[str]) -> str | None:
    """Say why nobody can answer for an expert.

    Args:
        ensemble: The ensemble.
        asked: Its name.
        off: Names of the experts that are switched off.

    Returns:
        One sentence; None where it answers itself or can be decoded.
    """
    missing = erased(ensemble, asked, off)
    if asked not in off or ensemble.how(missing)[asked] == "decoded":
        return None
    count = len(ensemble.coded_models)
    models = "one coded model makes" if count == 1 else f"{count} coded models make"
    some = "one missing expert" if count == 1 else f"{count} missing experts"
    sharing = "" if ensemble.code.labels is None else " of those that share a label"
    return (
        f"'{asked}' cannot be answered for: {', '.join(missing)} are switched off, and {models} "
        f"good for {some}{sharing}; switch one on again"
    )


@torch.no_grad()
def answer(ensemble: CodedEnsemble, x: Any, asked: str, off: Collection[str]) -> Answers:
    """Answer one input by an expert, and by decoding.

    Both ways run once uncounted and then `REPEATS` times in turn, so that what else the machine
    does falls on both.

    Args:
        ensemble: The ensemble, its experts loaded.
        x: The networks' input, without batch axis.
        asked: Name of the expert.
        off: Names of the experts that are switched off, which do not run.

    Returns:
        Both answers, as far as there are.

    Raises:
        InputError: If there is neither.
    """
    reason = refusal(ensemble, asked, off)
    if reason is not None:
        raise InputError(reason)
    number, batch = ensemble.names.index(asked), fit_to(stack([x]), ensemble.model)
    helpers = [name for name in ensemble.needs(asked) if name not in off]
    can = ensemble.how(erased(ensemble, asked, off))[asked] == "decoded"

    def decode() -> Tensor:
        answers: dict[int | str, Tensor] = {name: _own(ensemble, name, batch) for name in helpers}
        coded = ensemble.coded_logits(batch)
        return ensemble.decode(answers, coded, alone=True)[number]

    ways: list[Callable[[], Tensor] | None] = [
        None if asked in off else lambda: _own(ensemble, asked, batch),
        decode if can else None,
    ]
    own, decoded = (
        None if timed is None else Answer(timed[0][0].float().cpu(), timed[1], networks)
        for timed, networks in zip(
            in_turn(ways), (1, len(helpers) + len(ensemble.coded_models)), strict=True
        )
    )
    closest = closest_coded(ensemble.code.rows, number, range(len(ensemble.coded_models)))
    rows = ensemble.coded_logits(batch, [closest])[closest]
    alone = columns(rows, ensemble.coin.experts[number].class_order, "rows")
    return Answers(class_names(ensemble, number, alone.shape[1]), own, decoded, int(alone.argmax()))


def class_names(ensemble: CodedEnsemble, expert: int, count: int) -> tuple[str, ...]:
    """Return the names of an expert's classes, each of them once.

    Args:
        ensemble: The ensemble.
        expert: The expert's index.
        count: K_i.

    Returns:
        K_i names: `LABEL_k` where they are not known, and the number added where two are equal.
    """
    names = ensemble.label_names[expert] or [f"LABEL_{k}" for k in range(count)]
    counts = {name: list(names).count(name) for name in names}
    return tuple(name if counts[name] == 1 else f"{name} ({k})" for k, name in enumerate(names))


def in_turn(
    ways: Sequence[Callable[[], Result] | None], repeats: int = REPEATS
) -> list[tuple[Result, float] | None]:
    """Time several ways to compute something, by turns, after one uncounted run of each.

    Args:
        ways: The ways; None for one that is left out.
        repeats: Counted runs of each.

    Returns:
        For each way its last result and the median of its seconds.
    """
    found: list[Result | None] = [None if way is None else way() for way in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for k, way in enumerate(ways):
            if way is not None:
                start = time.perf_counter()
                found[k] = way()
                seconds[k].append(time.perf_counter() - start)
    return [
        None if result is None else (result, statistics.median(spent))
        for result, spent in zip(found, seconds, strict=True)
    ]


def _own(ensemble: CodedEnsemble, name: str, batch: Any) -> Tensor:
    """Run one expert: logits (B, K_i) of its own classes."""
    number = ensemble.names.index(name)
    experts = ensemble.experts or ()
    order = ensemble.coin.experts[number].class_order
    return columns(call(experts[number].model, batch), order, "rows")

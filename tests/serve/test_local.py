"""The embedded backend and the forms of answers."""

import asyncio
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coin_hf import InputError
from coin_hf.serve.answers import elements, logits_of
from coin_hf.serve.local import LocalNetwork
from coin_hf.serve.question import Question


class Slow(nn.Module):
    """A network that takes its time, and counts its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.1)
        self.batches.append(len(x))
        return x @ self.weight


def question(value: float) -> Question:
    return Question(b"", torch.full((3,), value))


def test_what_waits_goes_together_and_what_is_given_up_is_left_out() -> None:
    model = Slow()

    async def run() -> list[Tensor]:
        network = LocalNetwork("slow", model, most=4)
        first = asyncio.ensure_future(network.ask(question(0.0)))
        await asyncio.sleep(0.02)
        rest = [asyncio.ensure_future(network.ask(question(float(k)))) for k in range(1, 8)]
        await asyncio.sleep(0.02)
        assert network.waiting == 8
        assert network.stops
        for task in rest[1:4]:  # also one with others before it
            task.cancel()
        await asyncio.sleep(0)
        assert network.waiting == 5
        found = [await first, await rest[0], *[await task for task in rest[4:]]]
        assert network.waiting == 0
        await network.close()
        return found

    found = asyncio.run(run())
    assert [float(each[0]) for each in found] == [0.0, 1.0, 5.0, 6.0, 7.0]
    assert model.batches == [1, 4]


def test_an_error_is_that_of_its_batch_alone() -> None:
    async def run() -> None:
        network = LocalNetwork("slow", Slow())
        wrong: Any = Question(b"", torch.zeros(5))
        with pytest.raises(RuntimeError):
            await network.ask(wrong)
        assert (await network.ask(question(2.0))).tolist() == [2.0, 2.0, 2.0]
        await network.close()

    asyncio.run(run())


def test_answers_are_read_back() -> None:
    logits, labels = torch.tensor([9.0, 1.0, -4.0]), ("crane", "x", "bird")
    said = elements(logits, labels, function="none")
    assert [each["label"] for each in said] == ["crane", "x", "bird"]
    assert torch.equal(logits_of(said, labels), logits)
    assert torch.equal(logits_of([said], labels), logits)
    for wrong in (said[:2], [*said, said[0]], [{"label": "crane"}], "no"):
        with pytest.raises(InputError):
            logits_of(wrong, labels)
    twice = ("crane", "x", "crane")
    with pytest.raises(InputError, match="3 classes, not the 3"):
        logits_of(elements(logits, twice, function="none"), twice)

"""What the queries of a router share: networks, guards, and who listens."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from coin_hf.serve.decoder import Decoding
from coin_hf.serve.events import How, Observer, Reply
from coin_hf.serve.guards import Breaker, Deadline, Tokens
from coin_hf.serve.network import Network
from coin_hf.serve.race import Key, Race
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.usage import Usage


class State:
    """N + M networks, the code between them, and the guards of hedging."""

    def __init__(
        self,
        experts: Sequence[Network],
        coded: Sequence[Network],
        decoder: Decoding,
        settings: ServeSettings,
        observer: Observer | None,
    ) -> None:
        """Set up the guards; it must be made where the event loop runs.

        Args:
            experts: The N experts, in the code's order.
            coded: The M coded models.
            decoder: The code between them.
            settings: Deadlines, hedging, breakers.
            observer: Who listens; None for nobody.
        """
        self.experts, self.coded, self.decoder = tuple(experts), tuple(coded), decoder
        self.settings = settings
        self.observer = observer or Observer()
        self.now = asyncio.get_running_loop().time
        self.networks: dict[Key, Network] = {
            **{Key("expert", i): each for i, each in enumerate(experts)},
            **{Key("coded", c): each for c, each in enumerate(coded)},
        }
        self.usage = {
            key: Usage(each, settings.breaker.memory, self.now, routers=settings.routers)
            for key, each in self.networks.items()
        }
        self.deadlines = [Deadline(self.settings.deadline) for _ in experts]
        self.breakers = [Breaker(self.settings.breaker, self.now) for _ in experts]
        self.tokens = Tokens(self.settings.hedge)
        self._left: set[asyncio.Task[None]] = set()
        """Requests that go on after their query was answered, as they cannot be stopped."""

    def reply(self, race: Race, expert: int, how: How, began: float) -> Reply:
        """Make an answer of what arrived.

        Args:
            race: The requests of the query.
            expert: Index of the expert.
            how: Its own answer, decoded, or a coded model's alone.
            began: When the query began.

        Returns:
            The answer.
        """
        experts, coded = race.of("expert"), race.of("coded")
        others = len(race.asked) > 1
        if how == "direct":
            logits, used = experts[expert], [Key("expert", expert)]
        elif how == "alone":
            c, answer = self.decoder.alone(expert, {c: each[None] for c, each in coded.items()})
            logits, used = answer[0], [Key("coded", c)]
        else:
            helpers = self.decoder.helpers(expert)
            logits = self.decoded(race, expert)
            used = [Key("expert", j) for j in helpers if j in experts]
            used += [Key("coded", c) for c in sorted(coded)]
        return Reply(
            expert=self.experts[expert].name,
            logits=logits,
            how=how,
            hedged=others,
            used=tuple(self.networks[key].name for key in used),
            missing=tuple(
                race.name(key)
                for key in sorted(race.asked)
                if key[0] == "expert" and key not in race.arrived
            ),
            seconds=self.now() - began,
        )

    def left(self, began: float) -> float | None:
        """Return the seconds until a coded model may answer alone.

        Args:
            began: When the query began.

        Returns:
            At least 0; None if it never may.
        """
        alone = self.settings.alone
        return None if alone is None else max(0.0, began + alone - self.now())

    def decoded(self, race: Race, expert: int) -> Tensor:
        """Decode an expert's answer from the others that arrived.

        Args:
            race: The requests of the query.
            expert: Index of the expert.

        Returns:
            Logits of its own classes, shape (K_i,).
        """
        experts = {i: answer[None] for i, answer in race.of("expert").items() if i != expert}
        coded = {c: answer[None] for c, answer in race.of("coded").items()}
        return self.decoder.decode(expert, experts, coded)[0]

    def follow(
        self, task: asyncio.Task[Tensor], expert: int, decoded: Tensor, began: float
    ) -> None:
        """Let a late answer come, and compare it with the decoded one.

        Args:
            task: The request to the expert, which cannot be stopped.
            expert: Its index.
            decoded: The answer that was given.
            began: When it was asked.
        """
        self._go_on(self._compare(task, expert, decoded, began))

    def probe(self, expert: int, x: Any) -> None:
        """Try an expert that is down, beside the query that is decoded meanwhile.

        Args:
            expert: Its index.
            x: The query's input.
        """
        self._go_on(self._probe(expert, x))

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on beside the queries; a task that nobody holds may be collected."""
        task = asyncio.ensure_future(work)
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    async def _probe(self, expert: int, x: Any) -> None:
        began, network = self.now(), self.experts[expert]
        with suppress(Exception):
            await asyncio.wait_for(network.ask(x), self.settings.limits.seconds)
            self.deadlines[expert].observe(self.now() - began)
            self.breakers[expert].answered()

    async def drain(self) -> None:
        """Wait for requests that go on."""
        if self._left:
            await asyncio.wait(self._left, timeout=self.settings.limits.seconds)

    async def _compare(
        self, task: asyncio.Task[Tensor], expert: int, decoded: Tensor, began: float
    ) -> None:
        name = self.experts[expert].name
        self.observer.cancelled(name)
        with suppress(Exception):
            own = await task
            self.deadlines[expert].observe(self.now() - began)
            self.observer.wasted(name)
            self.observer.agreed(name, bool(own.argmax() == decoded.argmax()))

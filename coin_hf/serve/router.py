"""Route queries: ask an expert; where it is late, failed or down, compute its answer from others.

The first complete answer wins. Hedging is guarded, or it collapses under load: others are asked
for a late answer only while they are idle and a token is left, and requests for an expert that is
down, each of which takes all others, are refused above half load.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from torch import Tensor

from coin_hf.serve.decoder import Decoding
from coin_hf.serve.events import How, Observer, Reply, Unobserved
from coin_hf.serve.guards import Breaker, Deadline, Tokens
from coin_hf.serve.network import Late, Network, Overloaded, Refused, Unanswered
from coin_hf.serve.race import Key, Race
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.usage import Usage

Decoded = Literal["allow", "refuse", "only"]


class Router:
    """Answers for N experts through N + M networks, by the event loop's own clock."""

    def __init__(
        self,
        experts: Sequence[Network],
        coded: Sequence[Network],
        decoder: Decoding,
        settings: ServeSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Set up a router; it must be made where its event loop runs.

        Args:
            experts: The N experts, in the code's order.
            coded: The M coded models.
            decoder: The code between them.
            settings: Deadlines, hedging, breakers; by default all defaults.
            observer: Who listens to what happens; by default nobody.
        """
        self.experts, self.coded, self.decoder = tuple(experts), tuple(coded), decoder
        self.settings = settings or ServeSettings()
        self.observer: Observer = observer or Unobserved()
        self._now = asyncio.get_running_loop().time
        self._networks: dict[Key, Network] = {
            **{Key("expert", i): each for i, each in enumerate(experts)},
            **{Key("coded", c): each for c, each in enumerate(coded)},
        }
        self.usage = {
            key: Usage(each, self.settings.breaker.memory, self._now)
            for key, each in self._networks.items()
        }
        self.deadlines = [Deadline(self.settings.deadline) for _ in experts]
        self.breakers = [Breaker(self.settings.breaker, self._now) for _ in experts]
        self.tokens = Tokens(self.settings.hedge)
        self._left: set[asyncio.Task[None]] = set()
        """Requests that go on after their query was answered, as they cannot be stopped."""

    async def ask(self, expert: int, x: Any, decoded: Decoded = "allow") -> Reply:
        """Answer for one expert.

        Args:
            expert: Its index.
            x: The input, as the networks take it.
            decoded: Whether its answer may be computed from others (`allow`), must not (`refuse`),
                or must (`only`).

        Returns:
            Its own answer, or the decoded one.

        Raises:
            Overloaded: If it is down and the others are in use above half of the time.
            Refused: If it fails, and a decoded answer is refused.
            Late: If nothing answered in `limits.seconds`.
            Unanswered: If too few networks answer.
        """
        name = self.experts[expert].name
        query = _Query(self, expert, x)
        try:
            reply = await asyncio.wait_for(query.run(decoded), self.settings.limits.seconds)
        except asyncio.TimeoutError as error:
            late = Late(f"'{name}' has no answer in {self.settings.limits.seconds:g} s")
            self.observer.failed(name, late)
            raise late from error
        except Unanswered as error:
            self.observer.failed(name, error)
            raise
        finally:
            query.leave()
        self.observer.answered(reply)
        return reply

    async def ask_all(self, x: Any) -> list[Reply]:
        """Answer for every expert: all are asked, and the coded models; any N answers suffice.

        Args:
            x: The input.

        Returns:
            N answers, in the experts' order; the last ones are decoded as soon as they can be.

        Raises:
            Late: If too few networks answered in `limits.seconds`.
            Unanswered: If too many fail.
        """
        began, race = self._now(), Race(self._networks, self.usage, x, self.observer)
        try:
            await asyncio.wait_for(self._collect(race, began), self.settings.limits.seconds)
        except asyncio.TimeoutError as error:
            raise Late(f"too few answers in {self.settings.limits.seconds:g} s") from error
        finally:
            race.leave()
        answers = race.of("expert")
        replies = [
            self.reply(race, i, "direct" if i in answers else "decoded", began)
            for i in range(len(self.experts))
        ]
        for reply in replies:
            self.observer.answered(reply)
        return replies

    async def _collect(self, race: Race, began: float) -> None:
        """Ask all networks, until every expert's answer is there or can be decoded."""
        for kind, number in self._networks:
            race.start(kind, number)
        while True:
            answers, coded = race.of("expert"), race.of("coded")
            lost = [i for i in range(len(self.experts)) if i not in answers]
            if all(self.decoder.suffices(i, answers, coded) for i in lost):
                return
            if not race.pending:
                names = ", ".join(f"'{race.name(key)}'" for key in race.failed)
                raise Unanswered(f"too many networks fail: {names}")
            for key in await race.step(None):
                self._settled(key, race, began)

    def _settled(self, key: Key, race: Race, began: float) -> None:
        """Learn from a network that answered or failed."""
        kind, number = key
        if kind == "expert" and key in race.arrived:
            self.deadlines[number].observe(self._now() - began)
            self.breakers[number].answered()
        elif kind == "expert":
            self.breakers[number].missed()

    def reply(self, race: Race, expert: int, how: How, began: float) -> Reply:
        """Make an answer of what arrived.

        Args:
            race: The requests of the query.
            expert: Index of the expert.
            how: Its own answer, or decoded.
            began: When the query began.

        Returns:
            The answer.
        """
        experts, coded = race.of("expert"), race.of("coded")
        others = len(race.asked) > 1
        if how == "direct":
            logits, used = experts[expert], [Key("expert", expert)]
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
            used=tuple(self._networks[key].name for key in used),
            missing=tuple(
                race.name(key)
                for key in sorted(race.asked)
                if key[0] == "expert" and key not in race.arrived
            ),
            seconds=self._now() - began,
        )

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
        waiter = asyncio.ensure_future(self._compare(task, expert, decoded, began))
        self._left.add(waiter)
        waiter.add_done_callback(self._left.discard)

    async def _compare(
        self, task: asyncio.Task[Tensor], expert: int, decoded: Tensor, began: float
    ) -> None:
        name = self.experts[expert].name
        self.observer.cancelled(name)
        with suppress(Exception):
            own = await task
            self.deadlines[expert].observe(self._now() - began)
            self.observer.wasted(name)
            self.observer.agreed(name, bool(own.argmax() == decoded.argmax()))

    async def close(self) -> None:
        """Wait for requests that go on, and close all networks."""
        if self._left:
            await asyncio.wait(self._left, timeout=self.settings.limits.seconds)
        for network in self._networks.values():
            await network.close()


class _Query:
    """One query to one expert."""

    def __init__(self, router: Router, expert: int, x: Any) -> None:
        self.router, self.expert = router, expert
        self.race = Race(router._networks, router.usage, x, router.observer)
        self.began = router._now()
        self.own = Key("expert", expert)
        self.answer: Tensor | None = None
        """The decoded answer, where that was given."""

    async def run(self, decoded: Decoded) -> Reply:
        """Ask, wait, hedge; the first complete answer wins."""
        router, breaker = self.router, self.router.breakers[self.expert]
        if decoded == "only":
            return await self.computed("asked")
        if decoded == "allow" and breaker.open and not breaker.probe():
            if not self.room():
                raise Overloaded(
                    f"'{self.name}' is down, and its answer takes the other networks, which are "
                    "in use: try again"
                )
            return await self.computed("down")
        self.race.start(*self.own)
        while True:
            wait = router.deadlines[self.expert].seconds if decoded == "allow" else None
            if await self.race.step(wait):
                break
            reason = self.suppressed()
            if reason is None:
                return await self.computed("late")
            router.observer.suppressed(self.name, reason)
        if self.own in self.race.arrived:
            return self.direct()
        breaker.missed()
        if decoded == "refuse":
            raise Refused(f"'{self.name}' fails, and a decoded answer is refused")
        return await self.computed("failed")

    @property
    def name(self) -> str:
        return self.router.experts[self.expert].name

    def helpers(self) -> list[Key]:
        """The networks whose answers an expert's is computed from, but for itself."""
        others = [Key("expert", j) for j in self.router.decoder.helpers(self.expert)]
        return [*others, *(Key("coded", c) for c in self.router.decoder.parities(self.expert))]

    def suppressed(self) -> Literal["busy", "tokens"] | None:
        """Say what keeps a late answer from being computed."""
        if any(self.router._networks[key].waiting for key in self.helpers()):
            return "busy"
        return None if self.router.tokens.take() else "tokens"

    def room(self) -> bool:
        """Say whether the helpers have time for the queries of an expert that is down."""
        limit = self.router.settings.breaker.shed
        return all(self.router.usage[key].share <= limit for key in self.helpers())

    async def computed(self, reason: str) -> Reply:
        """Ask the helpers; return the first complete answer, the expert's own included."""
        router, race = self.router, self.race
        if not router.coded:
            raise Unanswered(f"'{self.name}' has no answer, and there is no coded model")
        router.observer.hedged(self.name, reason)
        for key in self.helpers():
            race.start(*key)
        while True:
            if self.own in race.arrived:
                return self.direct()
            others = {j for j in race.of("expert") if j != self.expert}
            if router.decoder.suffices(self.expert, others, race.of("coded")):
                self.answer = router.decoded(race, self.expert)
                if self.own in race.pending:
                    router.breakers[self.expert].missed()
                return router.reply(race, self.expert, "decoded", self.began)
            if not race.pending:
                names = ", ".join(f"'{race.name(key)}'" for key in race.failed)
                raise Unanswered(f"'{self.name}' has no answer: {names} failed")
            if self.own in await race.step(None) and self.own in race.failed:
                router.breakers[self.expert].missed()

    def direct(self) -> Reply:
        """Return the expert's own answer, and learn from it."""
        router, race = self.router, self.race
        router.deadlines[self.expert].observe(router._now() - self.began)
        router.breakers[self.expert].answered()
        router.tokens.give()
        others = {j for j in race.of("expert") if j != self.expert}
        if router.decoder.suffices(self.expert, others, race.of("coded")):
            other = router.decoded(race, self.expert)
            own = race.arrived[self.own]
            router.observer.agreed(self.name, bool(own.argmax() == other.argmax()))
        for key in race.arrived.keys() - {self.own}:
            router.observer.wasted(race.name(key))
        return router.reply(race, self.expert, "direct", self.began)

    def leave(self) -> None:
        """End what nobody waits for, but let an expert that cannot be stopped come to its end."""
        router = self.router
        keeps = self.answer is not None and not router.experts[self.expert].stops
        pending = self.own in self.race.pending
        kept = self.race.leave(self.own if keeps else None)
        if kept is not None and self.answer is not None:
            router.follow(kept, self.expert, self.answer, self.began)
        elif pending and self.answer is not None:
            router.deadlines[self.expert].observe(router._now() - self.began)

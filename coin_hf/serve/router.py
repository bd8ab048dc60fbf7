"""Route queries: ask an expert; where it is late, failed or down, compute its answer from others.

The first complete answer wins. Hedging is guarded, or it collapses under load: others are asked
for a late answer only while they are idle and a token is left, and requests for an expert that is
down, each of which takes all others, are refused above half load.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from coin_hf.serve.decoder import Decoding
from coin_hf.serve.events import How, Observer, Reply
from coin_hf.serve.network import Late, Network, Unanswered
from coin_hf.serve.query import Decoded, Query
from coin_hf.serve.race import Key, Race
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.state import State


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
        self.state = State(experts, coded, decoder, settings or ServeSettings(), observer)

    async def ask(self, expert: int, x: Any, decoded: Decoded = "allow") -> Reply:
        """Answer for one expert.

        Args:
            expert: Its index.
            x: The input, as the networks take it.
            decoded: Whether its answer may be computed from others (`allow`), must not (`refuse`),
                or must (`only`).

        Returns:
            Its own answer, or the decoded one; a coded model's alone if neither is to be had, and
            `settings.alone` and the caller allow it.

        Raises:
            Overloaded: If it is down and the others are in use above half of the time.
            Refused: If it fails, and a decoded answer is refused.
            Late: If nothing answered in `limits.seconds`.
            Unanswered: If too few networks answer.
        """
        name = self.state.experts[expert].name
        query = Query(self.state, expert, x)
        try:
            reply = await asyncio.wait_for(query.run(decoded), self.state.settings.limits.seconds)
        except asyncio.TimeoutError as error:
            if query.own in query.race.pending:
                self.state.breakers[expert].missed()
            late = Late(f"'{name}' has no answer in {self.state.settings.limits.seconds:g} s")
            self.state.observer.failed(name, late)
            raise late from error
        except Exception as error:
            self.state.observer.failed(name, error)
            raise
        finally:
            query.leave()
        self.state.observer.answered(reply)
        return reply

    async def ask_all(self, x: Any) -> list[Reply]:
        """Answer for every expert: all are asked, and the coded models; any N answers suffice.

        Args:
            x: The input.

        Returns:
            N answers, in the experts' order; the last ones are decoded as soon as they can be, or
            a coded model's alone where `settings.alone` allows it and they cannot.

        Raises:
            Late: If too few networks answered in `limits.seconds`.
            Unanswered: If too many fail.
        """
        state = self.state
        began, race = state.now(), Race(state.networks, state.usage, x, state.observer)
        try:
            await asyncio.wait_for(self._collect(race, began), self.state.settings.limits.seconds)
        except asyncio.TimeoutError as error:
            late = Late(f"too few answers in {self.state.settings.limits.seconds:g} s")
            self._failed(late)
            raise late from error
        except Exception as error:
            self._failed(error)
            raise
        finally:
            race.leave()
        replies = [
            self.state.reply(race, i, self._how(race, i), began)
            for i in range(len(self.state.experts))
        ]
        for reply in replies:
            self.state.observer.answered(reply)
        return replies

    def _how(self, race: Race, expert: int) -> How:
        """Say how an expert is answered for by what arrived."""
        answers, coded = race.of("expert"), race.of("coded")
        if expert in answers:
            return "direct"
        return "decoded" if self.state.decoder.suffices(expert, answers, coded) else "alone"

    def _failed(self, error: BaseException) -> None:
        """Tell the observer that a query to all has no answer: none is given for any expert."""
        for expert in self.state.experts:
            self.state.observer.failed(expert.name, error)

    async def _collect(self, race: Race, began: float) -> None:
        """Ask all networks, until every expert's answer is there or can be decoded."""
        for kind, number in self.state.networks:
            race.start(kind, number)
        while True:
            if all(self._how(race, i) != "alone" for i in range(len(self.state.experts))):
                return
            left = self.state.left(began)
            if left is not None and race.of("coded") and not (race.pending and left):
                return
            if not race.pending:
                names = ", ".join(f"'{race.name(key)}'" for key in race.failed)
                raise Unanswered(f"too many networks fail: {names}")
            for key in await race.step(left or None):
                self._settled(key, race, began)

    def _settled(self, key: Key, race: Race, began: float) -> None:
        """Learn from a network that answered or failed."""
        kind, number = key
        if kind == "expert" and key in race.arrived:
            self.state.deadlines[number].observe(self.state.now() - began)
            self.state.breakers[number].answered()
        elif kind == "expert":
            self.state.breakers[number].missed()

    async def close(self) -> None:
        """Wait for requests that go on, and close all networks."""
        await self.state.drain()
        for network in self.state.networks.values():
            await network.close()

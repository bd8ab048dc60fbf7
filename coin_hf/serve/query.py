"""One query to one expert: ask, wait, hedge; the first complete answer wins."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from coin_hf.serve.events import Reply
from coin_hf.serve.network import Overloaded, Refused, Unanswered
from coin_hf.serve.race import Key, Race
from coin_hf.serve.state import State

PATIENCE = 3
"""Deadlines after which an expert that cannot be hedged counts as having missed."""
AGAIN = 4
"""How often in a deadline a late answer that could not be hedged is tried again."""
Decoded = Literal["allow", "refuse", "only"]


class Query:
    """One query to one expert."""

    def __init__(self, state: State, expert: int, x: Any) -> None:
        self.state, self.expert = state, expert
        self.race = Race(state.networks, state.usage, x, state.observer)
        self.began = state.now()
        self.own = Key("expert", expert)
        self.answer: Tensor | None = None
        """The decoded answer, where that was given."""
        self.replaced = False
        """Whether an answer was given that is not the expert's own."""

    async def run(self, decoded: Decoded) -> Reply:
        """Ask, wait, hedge; the first complete answer wins."""
        state, breaker = self.state, self.state.breakers[self.expert]
        if decoded == "only":
            return await self.computed("asked")
        if decoded == "allow" and breaker.open:
            if breaker.probe():
                state.probe(self.expert, self.race.x)
            if not (helpers := self.affordable()):
                raise Overloaded(
                    f"'{self.name}' is down, and its answer takes the other networks, which are "
                    "in use: try again"
                )
            return await self.computed("down", helpers)
        self.race.start(*self.own)
        waits, told = 0, set[str]()  # in parts of a deadline
        while True:
            wait = state.deadlines[self.expert].seconds / (AGAIN if waits else 1)
            if await self.race.step(wait if decoded == "allow" else None):
                break
            reason = self.suppressed()
            if reason is None:
                return await self.computed("late")
            if reason not in told:  # a query counts once, however often it is tried
                state.observer.suppressed(self.name, reason)
                told.add(reason)
            waits += 1 if waits else AGAIN
            if waits == PATIENCE * AGAIN:
                breaker.missed()
            if breaker.open and (helpers := self.affordable()):
                return await self.computed("down", helpers)
            if state.left(self.began) == 0 and self.room(self.coded()):
                return await self.computed("late", self.coded())
        if self.own in self.race.arrived:
            return self.direct()
        breaker.missed()
        if decoded == "refuse":
            raise Refused(f"'{self.name}' fails, and a decoded answer is refused")
        return await self.computed("failed")

    @property
    def name(self) -> str:
        """The expert's name."""
        return self.state.experts[self.expert].name

    def helpers(self) -> list[Key]:
        """The networks whose answers an expert's is computed from, but for itself."""
        others = [Key("expert", j) for j in self.state.decoder.helpers(self.expert)]
        return [*others, *self.coded()]

    def coded(self) -> list[Key]:
        """The coded models among them."""
        return [Key("coded", c) for c in self.state.decoder.parities(self.expert)]

    def suppressed(self) -> Literal["busy", "tokens"] | None:
        """Say what keeps a late answer from being computed."""
        if any(self.state.networks[key].waiting for key in self.helpers()):
            return "busy"
        return None if self.state.tokens.take() else "tokens"

    def room(self, keys: Sequence[Key]) -> bool:
        """Say whether networks have time for the queries of an expert that is down."""
        limit = self.state.settings.breaker.shed
        return all(self.state.usage[key].share <= limit for key in keys)

    def affordable(self) -> list[Key]:
        """Choose whom to ask for an expert that is down: all helpers, if all have time for it.

        Else the coded models, where one may answer alone: that takes no other expert.
        """
        if self.room(self.helpers()):
            return self.helpers()
        alone = self.state.settings.alone is not None and self.room(self.coded())
        return self.coded() if alone else []

    async def computed(self, reason: str, helpers: Sequence[Key] | None = None) -> Reply:
        """Ask the helpers; return the first complete answer, the expert's own included."""
        state, race = self.state, self.race
        if not state.coded:
            raise Unanswered(f"'{self.name}' has no answer, and there is no coded model")
        state.observer.hedged(self.name, reason)
        for key in self.helpers() if helpers is None else helpers:
            race.start(*key)
        while True:
            if self.own in race.arrived:
                return self.direct()
            others = {j for j in race.of("expert") if j != self.expert}
            if state.decoder.suffices(self.expert, others, race.of("coded")):
                reply = self.instead("decoded")
                self.answer = reply.logits
                return reply
            left = state.left(self.began)
            lost = self.own not in race.pending and not self.hopeful()
            if left is not None and race.of("coded") and (lost or not left):
                return self.instead("alone")
            coming = left is not None and any(kind == "coded" for kind, _ in race.pending)
            if lost and not coming:
                if reason != "down" or self.own in race.failed:
                    names = ", ".join(f"'{race.name(key)}'" for key in race.failed)
                    raise Unanswered(f"'{self.name}' has no answer: {names} failed")
                race.start(*self.own)  # it counts as down, but no other way is left
            if self.own in await race.step(left or None) and self.own in race.failed:
                state.breakers[self.expert].missed()

    def instead(self, how: Literal["decoded", "alone"]) -> Reply:
        """Give an answer that is not the expert's own, and learn that it is late."""
        self.replaced = True
        if self.own in self.race.pending:
            self.state.breakers[self.expert].missed()
        return self.state.reply(self.race, self.expert, how, self.began)

    def hopeful(self) -> bool:
        """Say whether the answers that may still come could suffice."""
        keys = self.race.arrived.keys() | self.race.pending
        others = {number for kind, number in keys if kind == "expert" and number != self.expert}
        coded = {number for kind, number in keys if kind == "coded"}
        return self.state.decoder.suffices(self.expert, others, coded)

    def direct(self) -> Reply:
        """Return the expert's own answer, and learn from it."""
        state, race = self.state, self.race
        state.deadlines[self.expert].observe(state.now() - self.began)
        state.breakers[self.expert].answered()
        state.tokens.give()
        others = {j for j in race.of("expert") if j != self.expert}
        if state.decoder.suffices(self.expert, others, race.of("coded")):
            other = state.decoded(race, self.expert)
            own = race.arrived[self.own]
            state.observer.agreed(self.name, bool(own.argmax() == other.argmax()))
        for key in race.arrived:
            if key != self.own:
                state.observer.wasted(race.name(key))
        return state.reply(race, self.expert, "direct", self.began)

    def leave(self) -> None:
        """End what nobody waits for, but let an expert that cannot be stopped come to its end."""
        state = self.state
        keeps = self.answer is not None and not state.experts[self.expert].stops
        pending = self.own in self.race.pending
        kept = self.race.leave(self.own if keeps else None)
        if kept is not None and self.answer is not None:
            state.follow(kept, self.expert, self.answer, self.began)
        elif pending and self.replaced:
            state.deadlines[self.expert].observe(state.now() - self.began)

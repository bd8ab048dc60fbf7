"""The router on a virtual clock: who answers, when, and what is guarded."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.records.coin import ClassOrder
from coin_hf.serve.decoder import Decoder
from coin_hf.serve.events import Reply
from coin_hf.serve.network import Late, Overloaded, Refused, Unanswered
from coin_hf.serve.router import Router
from coin_hf.serve.settings import ServeSettings
from coin_hf.serve.simulated import SimulatedNetwork
from coin_hf.serve.virtual_time import run_virtually

DOWN = float("inf")
CLASSES = 4


def logits(x: float, expert: int) -> Tensor:
    """What expert i answers for the input x."""
    return torch.tensor([x + expert, x * expert, 1.0 - x, 0.5 * expert])


@dataclass
class Log:
    """An observer that writes down what it hears."""

    lines: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    def answered(self, reply: Reply) -> None:
        self.replies.append(reply)

    def failed(self, expert: str, error: BaseException) -> None:
        self.lines.append(f"{expert} failed: {type(error).__name__}")

    def hedged(self, expert: str, reason: str) -> None:
        self.lines.append(f"{expert} hedged: {reason}")

    def suppressed(self, expert: str, reason: str) -> None:
        self.lines.append(f"{expert} suppressed: {reason}")

    def cancelled(self, network: str) -> None:
        self.lines.append(f"{network} cancelled")

    def wasted(self, network: str) -> None:
        self.lines.append(f"{network} wasted")

    def agreed(self, expert: str, same: bool) -> None:
        self.lines.append(f"{expert} agreed: {same}")


class World:
    """A router over simulated networks; `take[name]` is how long the next answers take."""

    def __init__(self, n: int = 2, m: int = 1, stops: bool = True, **settings: Any) -> None:
        self.code = ErasureCode.design(n, m)
        self.take = {f"e{i}": 0.1 for i in range(n)} | {f"c{c}": 0.1 for c in range(m)}
        self.log = Log()

        def network(name: str, answer: Callable[[Any], Tensor]) -> SimulatedNetwork:
            return SimulatedNetwork(name, lambda now: self.take[name], stops=stops, answer=answer)

        self.experts = [network(f"e{i}", lambda x, i=i: logits(x, i)) for i in range(n)]
        self.coded = [network(f"c{c}", lambda x, c=c: self.parity(x, c)) for c in range(m)]
        self.router = Router(
            self.experts,
            self.coded,
            Decoder(self.code, (None,) * n),
            ServeSettings.model_validate({"deadline": {"most": 0.5, "least": 0.2}, **settings}),
            self.log,
        )

    def parity(self, x: float, c: int) -> Tensor:
        outputs = [logits(x, i)[None] for i in range(self.code.num_experts)]
        return self.code.encode(outputs)[c][0]

    async def ask(self, expert: int, x: float = 2.0, **options: Any) -> Reply:
        reply = await self.router.ask(expert, x, **options)
        torch.testing.assert_close(reply.logits, logits(x, expert), rtol=0, atol=1e-5)
        return reply


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test on virtual time."""

    def run() -> None:
        run_virtually(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_an_expert_in_time_answers_itself() -> None:
    world = World()
    reply = await world.ask(1)
    assert (reply.how, reply.hedged, reply.used, reply.missing) == ("direct", False, ("e1",), ())
    assert reply.seconds == pytest.approx(0.1)
    assert world.log.lines == []


@virtual
async def test_a_late_expert_is_computed_from_the_others() -> None:
    world = World()
    world.take["e1"] = 9.0
    reply = await world.ask(1)
    assert (reply.how, reply.used, reply.missing) == ("decoded", ("e0", "c0"), ("e1",))
    assert reply.seconds == pytest.approx(0.6)  # the deadline, and the helpers
    assert world.log.lines == ["e1 hedged: late", "e1 cancelled"]
    await asyncio.sleep(0)
    assert world.experts[1].waiting == 0


@virtual
async def test_the_expert_may_still_come_first() -> None:
    world = World()
    world.take |= {"e1": 0.55, "c0": 3.0}
    reply = await world.ask(1)
    assert (reply.how, reply.hedged, reply.used) == ("direct", True, ("e1",))
    assert reply.seconds == pytest.approx(0.55)
    assert "c0 cancelled" in world.log.lines


@virtual
async def test_where_both_answers_are_there_they_are_compared() -> None:
    world = World(breaker={"misses": 1})
    world.take |= {"e1": 0.6, "e0": 0.1, "c0": 0.1}  # all are there at 0.6
    reply = await world.ask(1)
    assert (reply.how, reply.used) == ("direct", ("e1",))
    assert world.log.lines[1:] == ["e1 agreed: True", "c0 wasted", "e0 wasted"]


@virtual
async def test_an_error_is_answered_for_at_once() -> None:
    world = World()
    world.take["e0"] = DOWN
    reply = await world.ask(0)
    assert (reply.how, reply.missing) == ("decoded", ("e0",))
    assert reply.seconds == pytest.approx(0.1)
    assert world.log.lines == ["e0 hedged: failed"]


@virtual
async def test_what_is_late_and_fails_is_said() -> None:
    world = World(limits={"seconds": 4.0})
    world.take |= {"e0": 9.0, "c0": 9.0}
    with pytest.raises(Late, match="'e0' has no answer in 4 s"):
        await world.ask(0)
    assert now() == pytest.approx(4.0)
    await asyncio.sleep(0)
    assert all(network.waiting == 0 for network in (*world.experts, *world.coded))
    world.take = dict.fromkeys(world.take, DOWN)
    with pytest.raises(Unanswered, match="'e0' has no answer: 'e0', 'c0', 'e1' failed"):
        await world.ask(0)
    with pytest.raises(Unanswered, match="too many networks fail"):
        await world.router.ask_all(2.0)


@virtual
async def test_callers_choose() -> None:
    world = World()
    world.take["e1"] = 1.5
    assert (await world.ask(1, decoded="refuse")).how == "direct"
    assert (await world.ask(0, decoded="only")).how == "decoded"
    world.take["e1"] = DOWN
    with pytest.raises(Refused, match="'e1' fails, and a decoded answer is refused"):
        await world.ask(1, decoded="refuse")


@virtual
async def test_two_coded_models_replace_two() -> None:
    world = World(n=3, m=2)
    world.take |= {"e0": DOWN, "e1": DOWN}
    for expert in (0, 1):
        reply = await world.ask(expert)
        assert reply.used == ("e2", "c0", "c1")
        assert reply.how == "decoded"
    world.take["c1"] = DOWN
    with pytest.raises(Unanswered):
        await world.ask(0)
    world.take["e1"] = 0.1
    assert (await world.ask(0)).used == ("e1", "e2", "c0")


@virtual
async def test_hedges_wait_for_idle_helpers_and_tokens() -> None:
    world = World(hedge={"tokens": 1})
    world.take |= {"e1": 1.05, "e0": 0.6}
    busy = asyncio.ensure_future(world.ask(0))
    reply = await world.ask(1)
    await busy
    assert "e1 suppressed: busy" in world.log.lines
    assert reply.how == "direct"  # at 1.05, after a hedge at 1.0
    assert "e1 hedged: late" in world.log.lines
    world.take["e0"] = 0.1
    before = len(world.log.lines)
    assert (await world.ask(1)).how == "direct"  # the token is spent
    assert world.log.lines[before:] == ["e1 suppressed: tokens"]  # once, though it waited twice
    none = World(hedge={"tokens": 0})
    none.take["e1"] = 1.0
    assert (await none.ask(1)).how == "direct"


@virtual
async def test_a_hedge_is_made_soon_after_the_helpers_are_idle() -> None:
    world = World()  # a deadline of half a second
    world.take |= {"e1": 9.0, "e0": 0.6}
    busy = asyncio.ensure_future(world.ask(0))
    await asyncio.sleep(0.05)
    world.take["e0"] = 0.1
    reply = await world.ask(1)
    await busy
    assert reply.how == "decoded"
    # Late at 0.55, tried again at 0.675, when the other expert is idle, and not at 1.05.
    assert reply.seconds == pytest.approx(0.5 + 0.125 + 0.1)


@virtual
async def test_a_breaker_spares_an_expert_that_is_down() -> None:
    world = World(breaker={"misses": 3, "probe": 1.0})
    world.take["e1"] = 9.0
    for _ in range(3):
        await world.ask(1)
        await asyncio.sleep(5)
    assert world.router.state.breakers[1].open
    world.router.state.breakers[1]._next = now() + 1.0
    reply = await world.ask(1)
    assert reply.seconds == pytest.approx(0.1)  # at once: it is not asked
    assert world.log.lines[-1] == "e1 hedged: down"
    await asyncio.sleep(1.0)
    world.take["e1"] = 0.1
    reply = await world.ask(1)  # decoded still, with a probe beside it
    assert (reply.how, reply.seconds) == ("decoded", pytest.approx(0.1))
    await asyncio.sleep(0.1)
    assert not world.router.state.breakers[1].open
    assert (await world.ask(1)).how == "direct"


@virtual
async def test_one_that_hangs_counts_as_down_without_tokens(  # as a replica that is restarted
) -> None:
    world = World(hedge={"tokens": 0}, breaker={"misses": 3, "probe": 1.0})
    world.take["e1"] = 25.0
    replies = await asyncio.gather(*(world.ask(1) for _ in range(6)))
    assert all(reply.how == "decoded" for reply in replies)
    assert max(reply.seconds for reply in replies) < 5
    assert (await world.ask(1)).seconds == pytest.approx(0.1)


@virtual
async def test_requests_for_one_that_is_down_are_shed_above_half_load() -> None:
    world = World(breaker={"misses": 1, "probe": 1e3})
    world.take["e1"] = DOWN
    await world.ask(1)
    assert world.router.state.breakers[1].open
    shed = 0
    for _ in range(60):  # the helpers are in use all the time
        try:
            await world.ask(1)
        except Overloaded:
            shed += 1
            await asyncio.sleep(0.1)
    assert 10 < shed < 40  # about half


@virtual
async def test_a_fan_out_takes_any_n_answers() -> None:
    world = World(n=3, m=1)
    world.take |= {"e1": 9.0}
    replies = await world.router.ask_all(2.0)
    assert [reply.how for reply in replies] == ["direct", "decoded", "direct"]
    assert now() == pytest.approx(0.1)
    for i, reply in enumerate(replies):
        torch.testing.assert_close(reply.logits, logits(2.0, i), rtol=0, atol=1e-5)
    await asyncio.sleep(0)
    assert world.experts[1].waiting == 0
    world.take["e2"] = DOWN
    world.take["e1"] = 0.3
    replies = await world.router.ask_all(2.0)
    assert [reply.how for reply in replies] == ["direct", "direct", "decoded"]


@virtual
async def test_a_network_that_cannot_be_stopped_keeps_its_slot() -> None:
    world = World(stops=False)
    world.take["e1"] = 3.0
    reply = await world.ask(1)
    assert reply.how == "decoded"
    assert world.experts[1].waiting == 1
    await asyncio.sleep(3.0)
    assert world.experts[1].waiting == 0
    assert world.log.lines[-2:] == ["e1 wasted", "e1 agreed: True"]


@virtual
async def test_labels_that_nobody_shares_take_the_coded_model_alone() -> None:
    sets = LabelSets(rows=((0, 1), (2, 3)), count=4)
    orders = tuple(ClassOrder(rows=list(rows), tensors=[], width=4) for rows in sets.rows)
    code = ErasureCode([0.5, 0.5], labels=sets)
    own = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0])]
    parity = torch.tensor([1.5, 0.5, 1.0, 2.0])
    experts = [SimulatedNetwork(f"e{i}", lambda now: DOWN) for i in range(2)]
    coded = [SimulatedNetwork("c0", lambda now: 0.1, answer=lambda x: parity)]
    router = Router(experts, coded, Decoder(code, orders))
    for i in range(2):
        reply = await router.ask(i, 0.0)
        assert reply.used == ("c0",)
        torch.testing.assert_close(reply.logits, own[i])


@virtual
async def test_the_deadline_follows_recent_answers() -> None:
    world = World(deadline={"most": 2.0, "least": 0.01})
    assert world.router.state.deadlines[0].seconds == 2.0
    for k in range(100):
        world.take["e0"] = 0.1 + 0.001 * (k % 20)
        await world.ask(0)
    assert world.router.state.deadlines[0].seconds == pytest.approx(0.119)
    world.take["e0"] = 1.0
    for _ in range(4):
        assert (await world.ask(0)).how == "decoded"
        await world.ask(1)
    # What was given up counts as late, so that the quantile does not creep down.
    assert world.router.state.deadlines[0].seconds >= 0.1189


@virtual
async def test_an_expert_that_is_back_is_asked_where_no_other_way_is_left() -> None:
    world = World(breaker={"misses": 1, "probe": 1e3})
    world.take |= {"e1": DOWN, "c0": DOWN}
    with pytest.raises(Unanswered):
        await world.ask(1)
    world.take["e1"] = 0.1
    assert (await world.ask(1)).how == "direct"
    assert world.log.lines.count("e1 failed: Unanswered") == 1


@virtual
async def test_what_cannot_be_decoded_any_more_is_not_waited_for() -> None:
    world = World(limits={"seconds": 30.0})
    world.take |= {"e1": DOWN, "c0": DOWN, "e0": 25.0}
    with pytest.raises(Unanswered):
        await world.ask(1)
    assert now() < 1.0


@virtual
async def test_every_query_is_counted_once() -> None:
    world = World(limits={"seconds": 2.0}, breaker={"misses": 2, "probe": 1e3})
    world.take = dict.fromkeys(world.take, 9.0)
    with pytest.raises(Late):
        await world.router.ask_all(2.0)
    assert {"e0 failed: Late", "e1 failed: Late"} <= set(world.log.lines)
    for _ in range(2):
        with pytest.raises(Late):
            await world.ask(0, decoded="refuse")
    assert world.router.state.breakers[0].open  # it hangs, whoever asks


@virtual
async def test_logits_that_are_not_finite_are_no_answer() -> None:
    world = World()
    world.experts[1]._answer = lambda x: torch.tensor([float("nan"), 1.0, 2.0, 3.0])
    assert (await world.ask(1)).how == "decoded"


async def lone(world: World, expert: int, x: float = 2.0, **options: Any) -> Reply:
    """Ask where the coded model answers alone."""
    reply = await world.router.ask(expert, x, **options)
    assert reply.how == "alone"
    [name] = reply.used
    torch.testing.assert_close(reply.logits, world.parity(x, int(name[1:])))
    return reply


@virtual
async def test_a_coded_model_answers_alone_where_the_others_fail_too() -> None:
    down = {"e0": DOWN, "e1": DOWN}
    world = World(n=3, alone=3.0, breaker={"misses": 2, "probe": 1e3})
    world.take |= down
    reply = await lone(world, 1)  # at once: what decoding lacks cannot come any more
    assert reply.seconds == pytest.approx(0.1)
    assert (reply.used, reply.missing) == (("c0",), ("e0", "e1"))
    assert (await lone(world, 1, decoded="only")).seconds == pytest.approx(0.1)
    await lone(world, 1)
    await asyncio.sleep(20)
    assert world.router.state.breakers[1].open
    assert (await lone(world, 1)).seconds == pytest.approx(0.1)
    with pytest.raises(Refused):
        await world.ask(1, decoded="refuse")
    world.take["c0"] = DOWN
    with pytest.raises(Unanswered, match="failed"):
        await world.ask(1)
    world.take |= {"e0": 0.1, "c0": 0.1}
    assert (await world.ask(1)).how == "decoded"  # never alone where it can be decoded
    by_default = World(n=3)
    by_default.take |= down
    with pytest.raises(Unanswered, match="'e1' has no answer: 'e1', 'e0' failed"):
        await by_default.ask(1)


@virtual
async def test_it_answers_alone_for_what_is_late_not_before_its_time() -> None:
    world = World(alone=3.0, limits={"seconds": 10.0})
    world.take |= {"e0": 9.0, "e1": 9.0}
    assert (await lone(world, 1)).seconds == pytest.approx(3.0)
    await asyncio.sleep(0)
    assert all(network.waiting == 0 for network in (*world.experts, *world.coded))
    assert not any("agreed" in line for line in world.log.lines)
    world.take["e0"] = 2.0
    assert (await world.ask(1)).how == "decoded"  # what decoding lacks may still come
    world.take |= {"e0": 9.0, "c0": 5.0}
    assert (await lone(world, 1)).seconds == pytest.approx(5.5)  # later where it comes later
    world.take |= {"e1": 2.0, "c0": 0.1}
    assert (await world.ask(1)).how == "direct"
    world.take["e1"] = 20.0
    with pytest.raises(Late):
        await world.ask(1, decoded="refuse")


@virtual
async def test_hangs_of_all_experts_do_not_use_up_the_coded_model() -> None:
    """Every expert hangs, under load: hedges are suppressed, and what is left answers alone."""
    world = World(alone=2.0, hedge={"tokens": 1}, breaker={"misses": 3, "probe": 1e3})
    world.take |= {"e0": 60.0, "e1": 60.0, "c0": 0.01}
    tasks = []
    for k in range(40):
        tasks.append(asyncio.ensure_future(world.router.ask(k % 2, 2.0)))
        await asyncio.sleep(0.5)
    replies = await asyncio.gather(*tasks)
    assert {reply.how for reply in replies} == {"alone"}
    assert max(reply.seconds for reply in replies) < 3.0
    assert replies[-1].seconds == pytest.approx(0.01, abs=1e-3)  # at once: both count as down
    assert world.router.state.tokens.left < 1


@virtual
async def test_a_busy_coded_model_is_not_asked_alone_either() -> None:
    world = World(alone=2.0, breaker={"misses": 1, "probe": 1e3})
    world.take |= {"e0": DOWN, "e1": DOWN}
    await lone(world, 1)
    shed = 0
    for _ in range(60):
        try:
            await lone(world, 1)
        except Overloaded:
            shed += 1
            await asyncio.sleep(0.1)
    assert 10 < shed < 40  # as for decoded ones: about half


@virtual
async def test_a_fan_out_answers_alone_for_those_that_cannot_be_decoded() -> None:
    world = World(n=3, alone=2.0, limits={"seconds": 10.0})
    world.take |= {"e1": DOWN, "e2": DOWN}
    replies = await world.router.ask_all(2.0)
    assert [reply.how for reply in replies] == ["direct", "alone", "alone"]
    assert now() == pytest.approx(0.1)
    torch.testing.assert_close(replies[0].logits, logits(2.0, 0))
    assert all(torch.equal(reply.logits, world.parity(2.0, 0)) for reply in replies[1:])
    world.take |= {"e1": 9.0, "e2": 9.0}
    began = now()
    assert [r.how for r in await world.router.ask_all(2.0)] == ["direct", "alone", "alone"]
    assert now() - began == pytest.approx(2.0)
    world.take["e1"] = 1.0
    assert [r.how for r in await world.router.ask_all(2.0)] == ["direct", "direct", "decoded"]
    world.take |= {"e1": DOWN, "c0": DOWN}
    with pytest.raises(Unanswered, match="too many networks fail"):
        await world.router.ask_all(2.0)


@virtual
async def test_of_two_coded_models_the_closest_that_is_there_answers_alone() -> None:
    world = World(n=3, m=2, alone=2.0)
    world.take |= {"e0": DOWN, "e1": DOWN, "e2": DOWN}
    rows = world.code.rows
    for expert in range(3):
        most = max(range(2), key=lambda c: rows[c][expert])
        assert (await lone(world, expert)).used == (f"c{most}",)
    world.take["c0"] = DOWN
    assert (await lone(world, 0)).used == ("c1",)


def test_nothing_is_left_to_wait_for() -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing is left to happen"):
        run_virtually(never())


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]

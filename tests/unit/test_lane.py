"""How many calls share a trip, and does each get its own answer?"""

from __future__ import annotations

import asyncio

import pytest

from actors.runtime import lane as lane_module
from actors.runtime.call import PENDING, RETURNED, Call, HostLost, Reply
from actors.runtime.errors import InvalidArgument
from actors.runtime.lane import (
    BATCH_BYTES_MAX,
    BATCH_CALLS_MAX,
    BATCHES_AWAY_MAX,
    CALL_BYTES_MAX,
    SECOND_BATCH_CALLS_MIN,
    Lane,
    LaneFull,
)
from tests.conformance.support import ticks


class ScriptedLink:
    """A host that answers when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[Call]] = []
        self.tickets: dict[str, asyncio.Future[Reply]] = {}
        self._replies: list[asyncio.Future[list[Reply]]] = []

    async def batch(self, calls: list[Call]) -> list[Reply]:
        self.batches.append(calls)
        reply: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        return await reply

    async def wait(self, ticket: str) -> Reply:
        self.tickets[ticket] = asyncio.get_running_loop().create_future()
        return await self.tickets[ticket]

    def answer(self, number: int = 0) -> None:
        """Replies to each call of a batch with its method's name."""
        self._replies[number].set_result([(RETURNED, call[3]) for call in self.batches[number]])

    def lose(self, number: int = 0) -> None:
        self._replies[number].set_exception(HostLost("host-0", "killed"))

    def reply(self, replies: list[Reply], number: int = 0) -> None:
        self._replies[number].set_result(replies)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def call(name: object, size_bytes: int = 0) -> Call:
    return "Class", "tenant", "name", str(name), b"x" * size_bytes, "", None


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink()


@pytest.fixture
def lane(link: ScriptedLink) -> Lane:
    return Lane(link)


def ask(lane: Lane, *names: object) -> list[asyncio.Task[Reply]]:
    return [asyncio.ensure_future(lane.call(call(name))) for name in names]


async def test_one_call_leaves_an_idle_lane_at_once(lane: Lane, link: ScriptedLink) -> None:
    (task,) = ask(lane, "a")
    await ticks()
    assert link.sizes == [1]
    link.answer()
    assert await task == (RETURNED, "a")


async def test_calls_made_together_leave_together_and_in_order(lane: Lane, link: ScriptedLink) -> None:
    tasks = ask(lane, *range(100))
    await ticks()
    assert link.sizes == [100]
    assert [each[3] for each in link.batches[0]] == [str(number) for number in range(100)]
    link.answer()
    assert [reply for _, reply in await asyncio.gather(*tasks)] == [str(number) for number in range(100)]


async def test_a_call_that_no_object_takes_is_refused_before_it_leaves(lane: Lane, link: ScriptedLink) -> None:
    with pytest.raises(InvalidArgument, match=f"arguments: must take at most {CALL_BYTES_MAX}"):
        await lane.call(call("huge", CALL_BYTES_MAX + 1))
    assert not link.batches


async def test_calls_gather_while_a_batch_is_away(lane: Lane, link: ScriptedLink) -> None:
    tasks = ask(lane, "a")
    await ticks()
    for number in range(SECOND_BATCH_CALLS_MIN - 1):
        tasks += ask(lane, number)
        await ticks()
    assert link.sizes == [1]
    link.answer(0)
    await ticks()
    assert link.sizes == [1, SECOND_BATCH_CALLS_MIN - 1]
    link.answer(1)
    await asyncio.gather(*tasks)


async def test_a_second_batch_starts_when_much_is_waiting_and_a_third_never(lane: Lane, link: ScriptedLink) -> None:
    tasks = ask(lane, "a")
    await ticks()
    tasks += ask(lane, *range(SECOND_BATCH_CALLS_MIN))
    await ticks()
    assert link.sizes == [1, SECOND_BATCH_CALLS_MIN]
    tasks += ask(lane, *range(3 * BATCH_CALLS_MAX))
    await ticks()
    assert len(link.batches) == BATCHES_AWAY_MAX == 2
    link.answer(1)
    await ticks()
    assert link.sizes == [1, SECOND_BATCH_CALLS_MIN, BATCH_CALLS_MAX]
    for number in (0, 2, 3, 4):
        link.answer(number)
        await ticks()
    await asyncio.gather(*tasks)
    assert sum(link.sizes) == 1 + SECOND_BATCH_CALLS_MIN + 3 * BATCH_CALLS_MAX


async def test_a_batch_is_bounded_in_calls(lane: Lane, link: ScriptedLink) -> None:
    tasks = ask(lane, *range(BATCH_CALLS_MAX + 10))
    await ticks()
    assert link.sizes == [BATCH_CALLS_MAX]
    link.answer(0)
    await ticks()
    assert link.sizes == [BATCH_CALLS_MAX, 10]
    link.answer(1)
    await asyncio.gather(*tasks)


async def test_a_batch_is_bounded_in_bytes(lane: Lane, link: ScriptedLink) -> None:
    tasks = [asyncio.ensure_future(lane.call(call(number, BATCH_BYTES_MAX // 2))) for number in range(5)]
    await ticks()
    assert link.sizes == [2]
    for number in range(3):
        link.answer(number)
        await ticks()
    assert link.sizes == [2, 2, 1]
    await asyncio.gather(*tasks)


async def test_a_lost_batch_fails_each_of_its_callers_and_no_other(lane: Lane, link: ScriptedLink) -> None:
    lost = ask(lane, "a", "b")
    await ticks()
    kept = ask(lane, "c")
    await ticks()
    link.lose(0)
    await ticks()
    link.answer(1)
    outcomes = await asyncio.gather(*lost, *kept, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [HostLost, HostLost, tuple]


async def test_a_pending_call_waits_with_its_ticket_and_holds_up_no_other(lane: Lane, link: ScriptedLink) -> None:
    slow, quick = ask(lane, "slow", "quick")
    await ticks()
    link.reply([(PENDING, "ticket"), (RETURNED, "quick")])
    assert await quick == (RETURNED, "quick")
    later = ask(lane, "later")[0]
    await ticks()
    link.answer(1)
    assert await later == (RETURNED, "later")
    assert not slow.done()
    link.tickets["ticket"].set_result((RETURNED, "slow"))
    assert await slow == (RETURNED, "slow")


async def test_a_call_whose_caller_gave_up_is_not_sent(lane: Lane, link: ScriptedLink) -> None:
    (first,) = ask(lane, "first")
    await ticks()
    given_up, kept = ask(lane, "given up", "kept")
    await ticks()
    given_up.cancel()
    await ticks()
    link.answer(0)
    await ticks()
    assert [each[3] for each in link.batches[1]] == ["kept"]
    link.answer(1)
    await asyncio.gather(first, kept)


async def test_a_caller_that_gives_up_after_sending_harms_no_other(lane: Lane, link: ScriptedLink) -> None:
    given_up, kept = ask(lane, "given up", "kept")
    await ticks()
    given_up.cancel()
    await ticks()
    link.answer(0)
    assert await kept == (RETURNED, "kept")
    (next_one,) = ask(lane, "next")
    await ticks()
    link.answer(1)
    assert await next_one == (RETURNED, "next")


async def test_a_lane_goes_on_after_all_its_callers_gave_up(lane: Lane, link: ScriptedLink) -> None:
    (first,) = ask(lane, "first")
    await ticks()
    waiting = ask(lane, *range(10))
    await ticks()
    for task in waiting:
        task.cancel()
    await ticks()
    link.answer(0)
    await first
    (last,) = ask(lane, "last")
    await ticks()
    assert link.sizes == [1, 1]
    link.answer(1)
    assert await last == (RETURNED, "last")


async def test_a_host_that_replies_to_too_few_calls_leaves_nobody_waiting(lane: Lane, link: ScriptedLink) -> None:
    tasks = ask(lane, "a", "b")
    await ticks()
    link.reply([(RETURNED, "a")])
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5.0)
    assert any(isinstance(outcome, Exception) for outcome in outcomes)


async def test_a_lane_is_bounded(lane: Lane, link: ScriptedLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "LANE_CALLS_MAX", 10)
    tasks = ask(lane, "away")
    await ticks()
    tasks += ask(lane, *range(10))
    await ticks()
    with pytest.raises(LaneFull):
        await lane.call(call("one too many"))
    link.answer(0)
    await ticks()
    link.answer(1)
    await asyncio.gather(*tasks)

"""Does a call end at its deadline, as within `asyncio.timeout`, and for nothing else?"""

from __future__ import annotations

import asyncio

import pytest

from actors.runtime.deadlines import TICK_S, Deadlines
from tests.conformance.support import ticks


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def wait_until(deadlines: Deadlines, deadline_s: float) -> str:
    try:
        with deadlines.until(deadline_s):
            await asyncio.Event().wait()
    except TimeoutError:
        return "given up"
    raise AssertionError("an event that nobody sets was set")


async def test_what_waits_is_given_up_at_its_deadline_and_not_before() -> None:
    deadline_s = now_s() + 2 * TICK_S

    assert await wait_until(Deadlines(), deadline_s) == "given up"

    assert now_s() >= deadline_s


async def test_a_deadline_that_has_passed_ends_the_wait_at_once() -> None:
    assert await wait_until(Deadlines(), now_s() - 1) == "given up"


async def test_each_is_given_up_at_its_own_deadline_in_whichever_order_they_were_set() -> None:
    deadlines, begun_s, ended = Deadlines(), now_s(), []

    async def wait(number: int) -> None:
        await wait_until(deadlines, begun_s + number * TICK_S)
        ended.append(number)

    await asyncio.gather(*map(wait, (3, 1, 2, 1)))

    assert ended == [1, 1, 2, 3]


async def test_what_ends_in_time_is_left_alone() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    for _ in range(3):
        with deadlines.until(now_s() + TICK_S):
            await asyncio.sleep(0)
        answer = loop.create_future()
        loop.call_later(2 * TICK_S, answer.set_result, "there")
        assert await answer == "there"


async def test_an_error_is_itself_and_a_cancellation_is_not_taken_for_a_deadline() -> None:
    deadlines = Deadlines()
    with pytest.raises(KeyError, match="mine"), deadlines.until(now_s() + 60):
        raise KeyError("mine")
    waiting = asyncio.ensure_future(wait_until(deadlines, now_s() + 60))
    await ticks()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_who_is_cancelled_at_its_deadline_too_is_cancelled() -> None:
    waiting = asyncio.ensure_future(wait_until(Deadlines(), now_s() - 1))
    await asyncio.sleep(0)  # it waits; its deadline comes with the next turn of the loop
    asyncio.get_running_loop().call_soon(waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_calls_that_have_ended_leave_nothing_behind() -> None:
    deadlines = Deadlines()
    for number in range(1000):
        with deadlines.until(now_s() + number):
            await asyncio.sleep(0)
    assert not deadlines._limits


def test_another_loop_begins_anew() -> None:
    deadlines = Deadlines()
    for _ in range(2):
        assert asyncio.run(_once(deadlines)) == "given up"


async def _once(deadlines: Deadlines) -> str:
    return await wait_until(deadlines, now_s() + TICK_S)

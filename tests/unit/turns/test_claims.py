"""Is a turn run by one at a time, in order, and stopped when that is asked?"""

from __future__ import annotations

import asyncio

from actors import (
    ChatSession,
)
from actors.runtime.namespace import Stub
from tests.turns import (
    ERROR,
    QUESTION,
    USAGE,
    asked,
    begun,
    history_of,
    said,
    settled,
    types_of,
)

# -- claiming


async def test_turns_are_claimed_in_the_order_in_which_they_came(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id), f"runner of {turn_id}")
    assert [(await session.claim(turn_id, "r"))["claim"] for turn_id in ("t2", "t3")] == [None, None]
    await session.finish("t1", attempt, 0, [], "completed")
    assert (await session.claim("t3", "r"))["claim"] is None
    claiming = await session.claim("t2", "r")
    assert claiming["claim"]["attempt"] == 1
    assert claiming["turn"]["status"] == "in_progress"


async def test_a_turn_is_one_runners_at_a_time(session: Stub[ChatSession]) -> None:
    await session.begin(asked("t1"), "r1")
    assert (await session.claim("t1", "r2"))["claim"] is None
    assert (await session.claim("t1", "r1"))["claim"]["attempt"] == 1


async def test_those_who_wait_claim_as_soon_as_their_time_comes(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id), "r")
    second, third = (asyncio.ensure_future(session.claim(turn_id, turn_id, 15.0)) for turn_id in ("t2", "t3"))
    await settled()
    # They keep nobody out.
    await session.record("t1", attempt, 0, said("x"))
    await session.append("system", "beside")
    assert not second.done()
    await session.finish("t1", attempt, 1, [], "completed")
    claim = (await asyncio.wait_for(second, 5))["claim"]
    assert not third.done()
    await session.finish("t2", claim["attempt"], claim["last_event"], [], "failed", error=ERROR)
    assert (await asyncio.wait_for(third, 5))["claim"] is not None


async def test_one_whose_time_does_not_come_may_ask_again(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    claiming = await session.claim("t2", "r", 0.02)
    assert (claiming["turn"]["status"], claiming["claim"]) == ("queued", None)


async def test_a_waiting_turn_that_is_cancelled_is_waited_for_no_more(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    waiting = asyncio.ensure_future(session.claim("t2", "r", 15.0))
    await settled()
    await session.cancel("t2")
    claiming = await asyncio.wait_for(waiting, 5)
    assert (claiming["turn"]["status"], claiming["claim"]) == ("cancelled", None)


# -- stopping


async def test_a_turn_that_waits_is_cancelled_at_once(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    assert (await session.cancel("t2"))["status"] == "cancelled"
    assert (await session.cancel("t2"))["status"] == "cancelled"
    assert await types_of(session, "t2") == ["turn.queued", "turn.cancelled"]
    assert (await session.claim("t2", "r"))["claim"] is None
    assert await history_of(session) == [("user", QUESTION)]


async def test_the_runner_of_a_turn_that_is_cancelled_is_told_at_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    attending = asyncio.ensure_future(session.attend("t1", attempt, 15.0))
    await settled()
    await session.record("t1", attempt, 0, said("half"))
    await settled()
    assert not attending.done()
    turn = await session.cancel("t1")
    assert (turn["status"], turn["cancel_requested"]) == ("in_progress", True)
    assert await asyncio.wait_for(attending, 2) is False
    await session.finish("t1", attempt, 1, [], "cancelled", usage=USAGE)
    assert (await session.turn("t1"))["status"] == "cancelled"
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]
    assert (await session.usage())["total_tokens"] == 15


async def test_a_turn_that_came_to_its_end_before_it_heard_is_completed(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.cancel("t1")
    ended = await session.finish("t1", attempt, 0, said("all"), "completed", finish_reason="stop")
    assert ended["turn"]["status"] == "completed"


async def test_one_that_is_given_back_when_it_was_to_stop_has_stopped(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.cancel("t1")
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    assert (await session.turn("t1"))["status"] == "cancelled"


async def test_an_answer_that_was_told_is_not_begun_again(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    turn = await session.turn("t1")
    assert (turn["status"], turn["finish_reason"]) == ("incomplete", "ModelUnavailable")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]


async def test_a_turn_is_not_given_back_for_ever(session: Stub[ChatSession]) -> None:
    for attempt in (1, 2):
        assert (await session.begin(asked("t1", attempts_max=2), f"r{attempt}"))["claim"]["attempt"] == attempt
        assert await session.release("t1", attempt, "ModelUnavailable") is True
    turn = await session.turn("t1")
    assert (turn["status"], turn["error"]["code"]) == ("failed", "ModelUnavailable")

"""Is what turns used counted once, whatever becomes of those who ran them?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import ChatSession, TokenUsage
from actors.runtime import ObjectNotFound, ObjectOverloaded
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.token_usage import USAGE_NAME
from actors.turn import Usage
from actors.usage_outbox import AGAIN_AFTER_S
from tests.turns import (
    USAGE,
    answer,
    asked,
    begun,
    events_of,
    said,
    sources,
)
from tests.unit.objects_fixtures import refusing
from tests.unit.turns.lost import LAPSED_S, backend, counted, offered


@pytest.fixture
async def session(lab: Lab) -> Stub[ChatSession]:
    session = lab.get(ChatSession, "acme", "s1")
    await session.create()
    return session


async def test_what_a_turn_used_is_counted_once_however_often_the_alarm_comes(
    lab: Lab, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    for _ in range(3):
        await lab.fire_alarm(session)
        await lab.advance(1)
    assert await counted(lab) == [("m", 1, 10, 5)]
    assert lab.sql(session, "SELECT * FROM untold_usage") == []


@pytest.mark.parametrize("which", ["session", "count"])
@pytest.mark.parametrize("reached_disk", [False, True])
async def test_what_a_turn_used_is_counted_once_when_a_host_is_lost(
    lab: Lab, session: Stub[ChatSession], which: str, reached_disk: bool
) -> None:
    await answer(session, "t1")
    count = lab.get(TokenUsage, "acme", USAGE_NAME)
    lost: Stub[Any] = session if which == "session" else count
    lab.crash_in_next_commit(lost, reached_disk=reached_disk)
    await asyncio.gather(*(turn.wait() for turn in lab._running.host.fire_due()))
    await asyncio.sleep(0)
    await lab.advance(120)
    assert await counted(lab) == [("m", 1, 10, 5)]


async def test_what_a_turn_used_is_counted_once_when_its_last_commit_fails(
    lab: Lab, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    with lab.hold_turns(lab.get(TokenUsage, "acme", USAGE_NAME)):
        ringing = [turn.wait() for turn in lab._running.host.fire_due()]
        await session.events("t1")
        # It has been told, and the session does not know it.
        lab.fail_next_commit(session)
    await asyncio.gather(*ringing)
    await lab.advance(120)
    assert await counted(lab) == [("m", 1, 10, 5)]


async def test_what_can_not_be_counted_is_counted_later_and_holds_no_turn_up(
    lab: Lab, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    with refusing(backend(lab), TokenUsage, "add"):
        await lab.advance(1000)  # longer than an alarm that raises is tried
        await begun(session, "t2")
        await lab.advance(LAPSED_S)
    assert await offered(lab) == ["t2"]
    assert await counted(lab) == []
    await lab.advance(AGAIN_AFTER_S)
    assert await counted(lab) == [("m", 1, 10, 5)]


async def test_what_was_used_is_counted_by_model_and_cancelled_turns_too(lab: Lab, session: Stub[ChatSession]) -> None:
    await answer(session, "t1")
    attempt = await begun(session, "t2")
    await session.cancel("t2")
    await session.finish("t2", attempt, 0, said("x"), "cancelled", usage=USAGE)
    attempt = await begun(session, "t3")
    await session.finish("t3", attempt, 0, [], "failed")
    await lab.advance(1)
    assert await counted(lab) == [("m", 2, 20, 10)]
    assert (await session.usage())["total_tokens"] == 30


async def test_what_was_used_before_a_session_began_anew_is_counted(lab: Lab) -> None:
    session = lab.get(ChatSession, "acme", "s2")
    await session.create(ttl_s=60)
    await answer(session, "t1")
    lab.clock.advance(60)
    await session.create()
    await lab.advance(1)
    assert await counted(lab) == [("m", 1, 10, 5)]
    assert (await session.usage())["total_tokens"] == 0


async def test_a_session_that_expires_is_counted_first(lab: Lab) -> None:
    session = lab.get(ChatSession, "acme", "s2")
    await session.create(ttl_s=60)
    await answer(session, "t1")
    lab.clock.advance(60)
    with refusing(backend(lab), TokenUsage, "add"):
        await lab.advance(200)
        assert lab.exists(session)
    await lab.advance(AGAIN_AFTER_S)
    assert await counted(lab) == [("m", 1, 10, 5)]
    assert not lab.exists(session)


# -- nobody is there to say what was used


HEARD: Usage = {"input_tokens": 8, "output_tokens": 2, "total_tokens": 10, "estimated": False}
GUESSED: Usage = {**HEARD, "estimated": True}


async def test_what_a_lost_runner_had_told_is_counted_as_an_estimate(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("be"), {**HEARD, "output_tokens": 1})
    await session.record("t1", attempt, 1, said("cause"), HEARD)
    await lab.advance(LAPSED_S)
    turn = await session.turn("t1")
    assert (turn["status"], turn["usage"]) == ("incomplete", GUESSED)
    assert (await events_of(session, "t1"))[-1]["data"]["usage"] == GUESSED
    assert (await session.history())["messages"][-1]["data"]["usage"] == GUESSED
    assert await session.usage() == {"input_tokens": 8, "output_tokens": 2, "total_tokens": 10}
    assert await counted(lab) == [("m", 1, 8, 2)]
    # It comes back, and says more.
    await session.finish("t1", attempt, 2, [], "completed", usage=USAGE)
    await lab.advance(LAPSED_S)
    assert await counted(lab) == [("m", 1, 8, 2)]


async def test_a_runner_that_ends_its_turn_knows_better_than_what_it_told_before(
    lab: Lab, session: Stub[ChatSession]
) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("be"), HEARD)
    await session.finish("t1", attempt, 1, [], "completed", usage=USAGE)
    assert (await session.turn("t1"))["usage"] == USAGE
    await lab.advance(LAPSED_S)
    assert await counted(lab) == [("m", 1, 10, 5)]


async def test_what_each_attempt_used_is_in_the_sum(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [sources("a")], HEARD)
    assert await session.release("t1", attempt, "ModelUnavailable")
    claim = (await session.claim("t1", "r2"))["claim"]
    assert claim is not None
    await session.finish("t1", claim["attempt"], claim["last_event"], said("x"), "completed", usage=USAGE)
    together = {"input_tokens": 18, "output_tokens": 7, "total_tokens": 25, "estimated": True}
    assert (await session.turn("t1"))["usage"] == together
    await lab.advance(LAPSED_S)
    assert await counted(lab) == [("m", 1, 18, 7)]


async def test_a_runner_that_had_not_used_anything_leaves_no_usage(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", attempts_max=1)
    nothing: Usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "estimated": False}
    await session.record("t1", attempt, 0, [sources("a")], nothing)
    await lab.advance(LAPSED_S)
    assert (await session.turn("t1"))["usage"] is None
    assert await counted(lab) == []


async def test_what_was_used_for_a_turn_that_was_to_stop_is_counted(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("be"), HEARD)
    await session.cancel("t1")
    await lab.advance(LAPSED_S)
    turn = await session.turn("t1")
    assert (turn["status"], turn["usage"]) == ("cancelled", GUESSED)
    assert await counted(lab) == [("m", 1, 8, 2)]


async def test_what_runs_is_counted_before_its_session_is_deleted(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("be"), HEARD)
    await session.begin(asked("t2"), "waits")
    assert await session.delete() is True
    assert await counted(lab) == [("m", 1, 8, 2)]
    with pytest.raises(ObjectNotFound):
        await session.finish("t1", attempt, 1, [], "completed", usage=USAGE)


async def test_a_session_that_could_not_be_counted_can_be_deleted_later(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("be"), HEARD)
    with refusing(backend(lab), TokenUsage, "add"), pytest.raises(ObjectOverloaded):
        await session.delete()
    assert (await session.turn("t1"))["status"] == "cancelled"
    assert await session.delete() is True
    assert await counted(lab) == [("m", 1, 8, 2)]


@pytest.mark.parametrize("is_made_anew", [False, True])
async def test_what_ran_in_a_session_that_expired_is_counted(lab: Lab, is_made_anew: bool) -> None:
    session = lab.get(ChatSession, "acme", "short")
    await session.create(ttl_s=5)
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("be"), HEARD)
    if is_made_anew:
        with refusing(backend(lab), TokenUsage, "add"):
            await lab.advance(6)
        await session.create()
        assert (await session.usage())["total_tokens"] == 0
    await lab.advance(AGAIN_AFTER_S + 6)
    assert await counted(lab) == [("m", 1, 8, 2)]

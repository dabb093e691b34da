"""What is kept of turns, is what they used counted once, and what does the listing show?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import ChatSession, Directory, TokenUsage
from actors.directory import DIRECTORY_NAME
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.token_usage import USAGE_NAME
from actors.turn import LEASE_S
from actors.usage_outbox import AGAIN_AFTER_S
from tests.turns import (
    LIMITS,
    USAGE,
    answer,
    begun,
    events_of,
    history_of,
    said,
)
from tests.unit.objects_fixtures import refusing
from tests.unit.turns.lost import LAPSED_S, backend, counted, offered


@pytest.fixture
async def session(lab: Lab) -> Stub[ChatSession]:
    session = lab.get(ChatSession, "acme", "s1")
    await session.create()
    return session


# -- what is kept


@pytest.mark.parametrize(
    ("status", "kept_s"),
    [
        ("completed", LIMITS["events_kept_s"]),
        ("cancelled", LIMITS["events_kept_s"]),
        ("failed", LIMITS["broken_events_kept_s"]),
        ("incomplete", LIMITS["broken_events_kept_s"]),
    ],
)
async def test_events_are_kept_for_a_while_and_turns_for_good(
    lab: Lab, session: Stub[ChatSession], status: Any, kept_s: float
) -> None:
    attempt = await begun(session, "t1")
    ended = await session.finish("t1", attempt, 0, said("x"), status, usage=USAGE)
    history = await history_of(session)
    await lab.advance(kept_s - 1)
    assert len(await events_of(session, "t1")) == 2
    await lab.advance(2)
    assert await session.events("t1", 0, 15.0) == {"events": [], "is_over": True}
    assert lab.sql(session, "SELECT * FROM turn_event") == []
    assert await session.turn("t1") == ended["turn"]
    assert await history_of(session) == history
    # Nothing is left to do.
    assert lab.alarm_of(session) is None


async def test_what_was_asked_does_not_stay_beside_the_history(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", "a secret")
    await session.finish("t1", attempt, 0, [], "completed")
    assert lab.sql(session, "SELECT message, request FROM turn") == [(None, "{}")]


async def test_events_of_a_turn_that_runs_are_kept(lab: Lab, session: Stub[ChatSession]) -> None:
    await answer(session, "t0")
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("x"))
    for _ in range(100):
        await session.attend("t1", attempt)
        await lab.advance(LEASE_S - 1)
    assert (await session.events("t0"))["events"] == []
    assert len(await events_of(session, "t1")) == 1


# -- what is used


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


# -- what the listing shows


async def test_the_listing_hears_of_a_turn_that_the_alarm_ended(lab: Lab, session: Stub[ChatSession]) -> None:
    directory = lab.get(Directory, "acme", DIRECTORY_NAME)
    await directory.put(await session.metadata())
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    await lab.advance(LAPSED_S)
    assert (await directory.page())["sessions"] == [await session.metadata()]


async def test_alarms_that_change_nothing_do_not_bother_the_listing(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    with refusing(backend(lab), Directory, "put"):
        for number in range(5):
            await lab.advance(LEASE_S - 1)
            await session.record("t1", attempt, number, said("x"))
        assert await lab.fire_alarm(session) is True

"""What is kept of turns, and what does the listing show of them?"""

from __future__ import annotations

from typing import Any

import pytest

from actors import ChatSession, Directory
from actors.directory import DIRECTORY_NAME
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.turn import LEASE_S
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
from tests.unit.turns.lost import LAPSED_S, backend


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

"""What becomes of turns whose session goes, and of what they used?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import (
    ChatSession,
    LocalBackend,
    ObjectNotFound,
    TokenUsage,
    turn_rows,
)
from actors.runtime import ObjectOverloaded
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from actors.token_usage import USAGE_NAME
from tests.turns import (
    ERROR,
    QUESTION,
    USAGE,
    answer,
    asked,
    begun,
    history_of,
    said,
    settled,
    types_of,
)
from tests.unit.objects_fixtures import refusing, ring


async def _waiting(session: Stub[ChatSession]) -> tuple[int, list[asyncio.Future[Any]]]:
    """A turn that runs, one that waits, and those who wait for both."""
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    await session.begin(asked("t2"), "r2")
    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(session.events("t1", 1, 15.0)),
        asyncio.ensure_future(session.attend("t1", attempt, 15.0)),
        asyncio.ensure_future(session.claim("t2", "r2", 15.0)),
    ]
    await settled()
    assert not any(each.done() for each in waiting)
    return attempt, waiting


async def _all_not_found(session: Stub[ChatSession], attempt: int) -> None:
    for call in (
        session.events("t1", 1),
        session.attend("t1", attempt),
        session.record("t1", attempt, 1, said("x")),
        session.finish("t1", attempt, 1, [], "completed"),
        session.claim("t2", "r2"),
        session.cancel("t1"),
    ):
        with pytest.raises(ObjectNotFound):
            await call


async def test_a_session_that_is_deleted_takes_its_turns_along(session: Stub[ChatSession]) -> None:
    attempt, waiting = await _waiting(session)
    assert await asyncio.wait_for(session.delete(), 5) is True
    for each in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(each, ObjectNotFound), each
    await _all_not_found(session, attempt)
    await session.create()
    await _all_not_found(session, attempt)
    await answer(session, "t3")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]


async def test_a_session_that_is_made_anew_after_it_expired_knows_no_old_turn(
    objects: LocalBackend, clock: ManualClock
) -> None:
    session = objects.namespace(ChatSession).get("acme", "s2")
    await session.create(ttl_s=60)
    attempt, waiting = await _waiting(session)
    clock.advance(60)
    await _all_not_found(session, attempt)
    await session.create()
    for each in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(each, ObjectNotFound), each
    await _all_not_found(session, attempt)
    assert (await session.turns())["turns"] == []
    assert await history_of(session) == []


async def test_a_session_that_expires_takes_its_turns_along(objects: LocalBackend, clock: ManualClock) -> None:
    session = objects.namespace(ChatSession).get("acme", "s2")
    await session.create(ttl_s=5)
    attempt, waiting = await _waiting(session)
    clock.advance(5)
    await ring(objects, clock)
    for each in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(each, ObjectNotFound), each
    await _all_not_found(session, attempt)


async def test_a_session_does_not_expire_under_its_runner(objects: LocalBackend, clock: ManualClock) -> None:
    session = objects.namespace(ChatSession).get("acme", "s2")
    await session.create(ttl_s=5)
    clock.advance(4)
    attempt = await begun(session, "t1")
    for number in range(3):
        clock.advance(4)
        await ring(objects, clock)
        assert await session.record("t1", attempt, number, said("x")) is True
    clock.advance(4)
    assert await session.attend("t1", attempt) is True
    clock.advance(4)
    await session.finish("t1", attempt, 3, [], "completed")
    assert (await session.metadata())["expires_at"] == clock.now() + 5


async def test_a_session_that_is_cleared_ends_its_turns_and_keeps_nothing_of_them(
    session: Stub[ChatSession],
) -> None:
    await answer(session, "t0", "old")
    attempt, waiting = await _waiting(session)
    reader, attending, claiming = waiting
    cleared = await session.clear()
    assert cleared["message_count"] == 0
    assert await session.clear() == cleared
    assert await types_of(session, "t2") == ["turn.queued", "turn.cancelled"]
    assert await asyncio.wait_for(attending, 5) is False
    assert (await asyncio.wait_for(claiming, 5))["turn"]["status"] == "cancelled"
    await session.finish("t1", attempt, 1, said("late"), "completed", usage=USAGE)
    assert (await asyncio.wait_for(reader, 5))["is_over"] is True
    assert await history_of(session) == []
    # What was told before is not told any more.
    assert await session.events("t0") == {"events": [], "is_over": True}
    await answer(session, "t3")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]


async def test_a_cleared_session_does_not_bring_back_what_had_given_way(session: Stub[ChatSession]) -> None:
    await answer(session, "t0", "old")
    attempt = await begun(session, "t1", None)
    await session.clear()
    await session.finish("t1", attempt, 0, [], "failed", error=ERROR)
    assert await history_of(session) == []


async def test_what_was_used_is_counted_before_a_session_is_deleted(
    objects: LocalBackend, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    await session.delete()
    (day,) = await objects.namespace(TokenUsage).get("acme", USAGE_NAME).days("2000-01-01", "2100-01-01")
    assert (day["turns"], day["input_tokens"], day["output_tokens"]) == (1, 10, 5)


async def test_a_session_stays_while_what_it_used_can_not_be_counted(
    objects: LocalBackend, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    with refusing(objects, TokenUsage, "add"), pytest.raises(ObjectOverloaded):
        await session.delete()
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]
    assert await session.delete() is True


async def test_rows_of_old_turns_go_and_their_keys_with_them(
    session: Stub[ChatSession], objects: LocalBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_rows, "ENDED_KEPT_MIN", 2)
    for number in range(4):
        attempt = await begun(session, f"t{number}", key=f"k{number}")
        await session.finish(f"t{number}", attempt, 0, [], "completed")
    clock.advance(turn_rows.ENDED_KEPT_S + 1)
    await ring(objects, clock)
    await answer(session, "t4")
    assert [turn["id"] for turn in (await session.turns())["turns"]] == ["t4", "t3", "t2", "t1"]
    assert (await session.begin(asked("again1", key="k1"), "r"))["joined"] is True
    assert (await session.begin(asked("again0", key="k0"), "r"))["joined"] is False

"""Does a client's own name for a conversation lead to one session, whoever comes first?"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import KeyValue, ObjectNotFound
from actors.runtime.clock import ManualClock
from deployments.chats import KEPT_S, REFRESHED_AFTER_S, RESERVED_S, Chats, Place
from tests.unit.handles import FailingObjects

CHAT = "aBc-123 🐟"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000_000.0)


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[KeyValue])
    yield objects
    objects.close()


@pytest.fixture
def chats(objects: FailingObjects, clock: ManualClock) -> Chats:
    ids = (f"s{number:032x}" for number in itertools.count())
    return Chats(objects, lambda: next(ids), clock.now)


async def made(chats: Chats, chat: str = CHAT, instead_of: Place | None = None) -> Place:
    """A chat that has its session."""
    place = await chats.reserve("acme", chat, instead_of=instead_of)
    await chats.made("acme", chat, place)
    return dataclasses.replace(place, is_made=True)


async def test_a_chat_has_no_place_until_one_is_kept_for_it_and_the_same_from_then_on(chats: Chats) -> None:
    assert await chats.find("acme", CHAT) is None
    kept = await chats.reserve("acme", CHAT)
    assert not kept.is_made
    assert await chats.find("acme", CHAT) == kept
    await chats.made("acme", CHAT, kept)
    assert await chats.find("acme", CHAT) == dataclasses.replace(kept, is_made=True)
    assert await chats.find("acme", CHAT + "4") is None
    assert await chats.find("demo", CHAT) is None


async def test_many_who_come_first_all_get_one_place(chats: Chats) -> None:
    places = await asyncio.gather(*[chats.reserve("acme", CHAT) for _ in range(10)])
    assert len({place.session_id for place in places}) == 1
    await asyncio.gather(*[chats.made("acme", CHAT, place) for place in places])
    assert await chats.reserve("acme", CHAT) == dataclasses.replace(places[0], is_made=True)


async def test_a_session_that_has_gone_gives_way_to_one_new_one(chats: Chats) -> None:
    first = await made(chats)
    again = await asyncio.gather(*[chats.reserve("acme", CHAT, instead_of=first) for _ in range(3)])
    assert len({place.session_id for place in again}) == 1
    assert await chats.find("acme", CHAT) == again[0]
    assert again[0].session_id != first.session_id
    assert not again[0].is_made


async def test_a_sessions_own_id_is_that_session_and_no_other_is_kept_for_it(chats: Chats) -> None:
    session_id = f"s{7:032x}"
    place = Place(session_id=session_id, is_made=True)
    assert await chats.find("acme", session_id) == place
    with pytest.raises(ObjectNotFound):
        await chats.reserve("acme", session_id, instead_of=place)


async def test_a_place_that_was_kept_for_nothing_is_forgotten_soon_and_a_chat_in_use_is_not(
    chats: Chats, clock: ManualClock
) -> None:
    kept, used, idle = await chats.reserve("acme", "kept"), await made(chats), await made(chats, "idle")
    clock.advance(RESERVED_S + 1)
    assert await chats.find("acme", "kept") is None
    await chats.made("acme", "kept", kept)
    assert await chats.find("acme", "kept") is None
    for _ in range(int(2 * KEPT_S / REFRESHED_AFTER_S)):
        clock.advance(REFRESHED_AFTER_S + 1)
        assert await chats.find("acme", CHAT) == used
    assert await chats.find("acme", "idle") is None
    assert (await chats.reserve("acme", "idle", instead_of=idle)).session_id != idle.session_id


async def test_a_chat_in_use_is_not_written_each_time(
    chats: Chats, clock: ManualClock, objects: FailingObjects
) -> None:
    await made(chats)
    objects.calls.clear()
    for _ in range(3):
        clock.advance(3_600)
        await chats.find("acme", CHAT)
    assert objects.calls == [("KeyValue", "get")] * 3

"""Are events told once, in order, and read by all who wait for them?"""

from __future__ import annotations

import asyncio

import pytest

from actors import (
    ChatSession,
    InvalidArgument,
    LocalBackend,
    turn_events,
    turn_rows,
)
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from actors.turn import NewEvent
from tests.turns import (
    ERROR,
    QUESTION,
    USAGE,
    answer,
    asked,
    begun,
    created,
    events_of,
    history_of,
    said,
    settled,
    sources,
    types_of,
)

# -- telling


async def test_events_are_numbered_from_one(session: Stub[ChatSession], clock: ManualClock) -> None:
    attempt = await begun(session, "t1")
    assert await session.record("t1", attempt, 0, [created(), sources("a")]) is True
    assert await session.record("t1", attempt, 2, said("x")) is True
    assert await session.events("t1") == {
        "events": [
            {"number": 1, "type": "turn.created", "data": {}},
            {"number": 2, "type": "sources", "data": {"sources": [{"id": "a"}]}},
            {"number": 3, "type": "text.delta", "data": {"text": "x"}},
        ],
        "is_over": False,
    }
    assert (await session.turn("t1"))["last_event"] == 3


async def test_what_is_told_again_is_told_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for _ in range(3):
        assert await session.record("t1", attempt, 0, said("a", "b")) is True
    await session.record("t1", attempt, 1, said("b", "c"))
    assert [event["data"]["text"] for event in await events_of(session, "t1")] == ["a", "b", "c"]


@pytest.mark.parametrize("after", [-1, 2, 2**70])
async def test_a_gap_is_refused(session: Stub[ChatSession], after: int) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("a"))
    with pytest.raises(InvalidArgument):
        await session.record("t1", attempt, after, said("b"))
    with pytest.raises(InvalidArgument):
        await session.finish("t1", attempt, after, said("b"), "completed")
    assert len(await events_of(session, "t1")) == 1


@pytest.mark.parametrize(
    "event",
    [
        {"type": "turn.completed", "data": {}},
        {"type": "turn.retrying", "data": {}},
        {"type": "rubbish", "data": {}},
        {"type": "text.delta", "data": {}},
        {"type": "text.delta", "data": {"text": None}},
        {"type": "tool.call", "data": {"id": "a", "name": "x"}},
        {"type": "tool.result", "data": {"name": "x", "result": 1}},
        {"type": "sources", "data": {}},
    ],
)
async def test_an_event_of_which_no_answer_could_be_made_is_refused(
    session: Stub[ChatSession], event: NewEvent
) -> None:
    attempt = await begun(session, "t1")
    with pytest.raises(InvalidArgument):
        await session.record("t1", attempt, 0, [*said("a"), event])
    assert await events_of(session, "t1") == []


async def test_a_runner_whose_turn_is_anothers_tells_nothing(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [created()])
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    claim = (await session.claim("t1", "r2"))["claim"]
    assert (claim["attempt"], claim["last_event"], claim["is_created"]) == (attempt + 1, 2, True)
    assert await session.record("t1", attempt, 2, said("stale")) is False
    assert await session.attend("t1", attempt) is False
    assert await session.release("t1", attempt, "ModelUnavailable") is False
    ended = await session.finish("t1", attempt, 2, said("stale"), "completed")
    assert ended["turn"]["status"] == "in_progress"
    await session.finish("t1", claim["attempt"], 2, said("fresh"), "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "fresh")]
    assert await types_of(session, "t1") == ["turn.created", "turn.retrying", "text.delta", "turn.completed"]


async def test_a_model_that_writes_for_ever_is_stopped(
    session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_events, "TURN_CHARS_MAX", 100)
    attempt = await begun(session, "t1")
    assert await session.record("t1", attempt, 0, said("a" * 50)) is True
    assert await session.record("t1", attempt, 1, said("b" * 50)) is False
    assert await session.record("t1", attempt, 2, said("c")) is False
    ended = await session.finish("t1", attempt, 2, [], "cancelled", usage=USAGE)
    assert (ended["turn"]["status"], ended["turn"]["finish_reason"]) == ("incomplete", "length")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "a" * 50 + "b" * 50)]


# -- following


async def test_readers_that_wait_get_the_next_event_at_once_however_many(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("a"))
    readers = [asyncio.ensure_future(session.events("t1", 1, 15.0)) for _ in range(30)]
    behind = await session.events("t1", 0, 15.0)
    assert [event["number"] for event in behind["events"]] == [1]
    await settled()
    assert not any(reader.done() for reader in readers)
    await session.record("t1", attempt, 1, said("b"))
    pages = await asyncio.wait_for(asyncio.gather(*readers), 5)
    assert all([event["data"]["text"] for event in page["events"]] == ["b"] for page in pages)


async def test_a_reader_hears_of_the_end_at_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await settled()
    await session.finish("t1", attempt, 0, [], "failed", error=ERROR)
    page = await asyncio.wait_for(reader, 5)
    assert ([event["type"] for event in page["events"]], page["is_over"]) == (["error"], True)
    assert await session.events("t1", 1, 15.0) == {"events": [], "is_over": True}
    assert await session.events("t1", 99, 15.0) == {"events": [], "is_over": True}


async def test_a_reader_waits_no_longer_than_it_asks(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    for wait_s in (0.02, 0.0, -1.0, float("nan")):
        assert await session.events("t1", 0, wait_s) == {"events": [], "is_over": False}


async def test_a_reader_of_one_turn_is_not_answered_for_another(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    reader = asyncio.ensure_future(session.events("t2", 1, 15.0))
    await settled()
    await session.record("t1", attempt, 0, said("a"))
    await settled()
    assert not reader.done()
    await session.cancel("t2")
    assert [event["type"] for event in (await asyncio.wait_for(reader, 5))["events"]] == ["turn.cancelled"]


async def test_readers_see_each_event_once_while_it_is_written(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")

    async def follow() -> str:
        text, after = "", 0
        while True:
            page = await session.events("t1", after, 15.0)
            for event in page["events"]:
                assert event["number"] == after + 1
                after = event["number"]
                text += event["data"].get("text", "")
            if page["is_over"]:
                return text

    readers = [asyncio.ensure_future(follow()) for _ in range(5)]
    for number in range(40):
        await session.record("t1", attempt, number, said(f"{number} "))
    await session.finish("t1", attempt, 40, [], "completed")
    texts = await asyncio.wait_for(asyncio.gather(*readers), 20)
    stored = (await history_of(session))[-1][1]
    assert set(texts) == {stored}


async def test_pages_are_bounded_by_number_and_size(
    session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_events, "EVENT_PAGE_MAX", 4)
    monkeypatch.setattr(turn_events, "EVENT_PAGE_CHARS_MAX", 100)
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said(*"abcdef", "x" * 200, "y" * 200, "z"))
    await session.finish("t1", attempt, 9, [], "completed")
    pages, after = [], 0
    while True:
        page = await session.events("t1", after)
        pages.append([event["number"] for event in page["events"]])
        after = pages[-1][-1]
        if page["is_over"]:
            break
    assert pages == [[1, 2, 3, 4], [5, 6], [7], [8], [9], [10]]


async def test_readers_write_nothing(objects: LocalBackend, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    before = await session.metadata()
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await settled()
    activation = objects.host.activation_of(session.id)
    assert activation is not None
    assert activation.instance is not None
    changed = activation.instance.storage.rows_changed
    await session.events("t1", 0, 0.02)
    assert await session.metadata() == before
    assert activation.instance.storage.rows_changed == changed
    await session.record("t1", attempt, 0, said("x"))
    await reader


async def test_a_waiting_reader_looks_only_when_there_is_news(
    objects: LocalBackend, session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await begun(session, "t1")
    looks: list[int] = []
    has_news = turn_events.TurnEvents.has_news

    def look(self: turn_events.TurnEvents, turn_id: str, after: int) -> bool:
        looks.append(after)
        return has_news(self, turn_id, after)

    monkeypatch.setattr(turn_events.TurnEvents, "has_news", look)
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await settled()
    await session.append("system", "no news of a turn")
    await session.history()
    await settled()
    assert looks == [0]
    await session.record("t1", attempt, 0, said("x"))
    await reader
    assert looks == [0, 0]


async def test_turns_are_listed_newest_first(session: Stub[ChatSession]) -> None:
    for number in range(5):
        await answer(session, f"t{number}")
    expected: dict[tuple[int, str | None], tuple[list[str], bool]] = {
        (2, None): (["t4", "t3"], True),
        (2, "t3"): (["t2", "t1"], True),
        (2, "t2"): (["t1", "t0"], False),
        (5, None): (["t4", "t3", "t2", "t1", "t0"], False),
        (0, None): (["t4"], True),
        (-3, "t4"): (["t3"], True),
        (1000, "t0"): ([], False),
    }
    pages = {given: await session.turns(*given) for given in expected}
    found = {given: ([turn["id"] for turn in page["turns"]], page["has_more"]) for given, page in pages.items()}
    assert found == expected


async def test_a_page_of_turns_is_bounded(session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_rows, "TURN_PAGE_MAX", 2)
    for number in range(3):
        await answer(session, f"t{number}")
    page = await session.turns(1000)
    assert (len(page["turns"]), page["has_more"]) == (2, True)

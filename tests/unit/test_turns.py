"""Does every reader of a turn hear all of it, whenever it comes and wherever it begins?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import ChatSession, ObjectNotFound, ObjectReset
from configs.tenant import TurnsConfig
from deployments import turns
from deployments.errors import EventsGone, ModelRefused
from deployments.question import Asked
from tests.unit import handles
from tests.unit.handles import EchoModel
from tests.unit.objects_fixtures import ring
from tests.unit.talk import TENANTS, WITHIN_S, Talk, everything, question, talk_at, text_of, types_of

LOST = ObjectReset("ChatSession/acme:s", "its host was lost")
NO_TURN = "t" + "0" * 24


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


async def answered(talk: Talk, *pieces: str) -> Asked:
    asked = await talk.replica(EchoModel(*pieces)).begin(question())
    await talk.ended(asked)
    return asked


async def test_events_are_kept_for_as_long_as_their_tenant_says_and_longer_where_the_turn_broke_off(
    tmp_path: Path,
) -> None:
    brief = handles.tenant("brief", turns=TurnsConfig(events_kept_s=5, broken_events_kept_s=50))
    with talk_at(tmp_path, {"brief": brief}) as talk:
        failing = EchoModel("Half", failure=ModelRefused("no more"))
        asked: list[Asked] = []
        for model in (EchoModel("Yes"), failing):
            asked.append(await talk.replica(model).begin(question(tenant="brief", retrieve=False)))
            await talk.ended(asked[-1], "brief")
        endings = [types_of(await talk.events(one, "brief"))[-1] for one in asked]
        assert endings == ["turn.completed", "turn.incomplete"]

        async def still_kept() -> list[bool]:
            await ring(talk.objects, talk.clock)
            return [await are_kept(talk, one) for one in asked]

        for seconds, kept in ((4, [True, True]), (2, [False, True]), (43, [False, True]), (2, [False, False])):
            talk.clock.advance(seconds)
            async with asyncio.timeout(WITHIN_S):
                # The alarm that tells of a turn's usage may still be under way.
                while await still_kept() > kept:
                    pass
            assert await still_kept() == kept


async def are_kept(talk: Talk, asked: Asked) -> bool:
    try:
        return bool(await talk.events(asked, "brief"))
    except EventsGone:
        return False


async def test_several_readers_hear_all_events_of_one_turn_whenever_they_come(talk: Talk) -> None:
    model = EchoModel(*[str(number) for number in range(50)], stalls_at=25)
    asked = await talk.replica(model).begin(question())
    early = [asyncio.create_task(talk.events(asked)) for _ in range(3)]
    await talk.heard(asked, "text.delta")
    middle = asyncio.create_task(talk.events(asked))
    model.may_go_on.set()
    late = await talk.events(asked)
    assert text_of(late) == "".join(map(str, range(50)))
    assert all(heard == late for heard in await asyncio.gather(*early, middle))


async def test_a_reader_that_leaves_takes_no_event_from_the_others(talk: Talk) -> None:
    model = EchoModel("a", "b", stalls_at=1)
    asked = await talk.replica(model).begin(question())
    leaver = await talk.turns.follow("acme", asked.session_id, asked.turn_id)
    stayer = await talk.turns.follow("acme", asked.session_id, asked.turn_id)
    await anext(leaver)
    model.may_go_on.set()
    assert text_of(await everything(stayer)) == "ab"
    assert text_of(await everything(leaver)) == "ab"


async def test_a_stream_that_was_cut_off_goes_on_behind_any_event(talk: Talk) -> None:
    asked = await answered(talk, "a", "b", "c")
    whole = await talk.events(asked)
    for after in range(len(whole) + 3):
        assert await talk.events(asked, after=after) == whole[after:]


async def test_a_reader_outlasts_a_session_that_is_lost_for_a_while(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOST_PAUSE_S", 0.01)
    model = EchoModel("a", "b", stalls_at=1)
    asked = await talk.replica(model).begin(question())
    await talk.heard(asked, "text.delta")
    reading = await talk.turns.follow("acme", asked.session_id, asked.turn_id)
    talk.objects.failing["ChatSession", "events"] = [LOST, LOST]
    talk.objects.failing_after["ChatSession", "events"] = [LOST]
    model.may_go_on.set()
    events = await everything(reading)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (text_of(events), events[-1]["type"]) == ("ab", "turn.completed")


async def test_a_reader_gives_up_a_session_that_stays_lost(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LOST_FOR_MAX_S", 0.0)
    model = EchoModel("a", stalls_at=0)
    asked = await talk.replica(model).begin(question())
    await talk.heard(asked, "sources")
    reading = await talk.turns.follow("acme", asked.session_id, asked.turn_id, after=2)
    talk.objects.failing["ChatSession", "events"] = [LOST]
    with pytest.raises(ObjectReset):
        await everything(reading)
    model.may_go_on.set()
    await talk.ended(asked)


async def test_events_that_are_no_longer_kept_are_said_to_be_gone(talk: Talk) -> None:
    asked = await answered(talk, "a")
    last = (await talk.events(asked))[-1]["number"]
    talk.clock.advance(TENANTS["acme"].turns.events_kept_s + 1)
    session = talk.objects.namespace(ChatSession).get("acme", asked.session_id)
    async with asyncio.timeout(WITHIN_S):
        # The alarm that tells of the turn's usage may still be under way.
        while (await session.events(asked.turn_id))["events"]:
            await ring(talk.objects, talk.clock)
    for after in (0, last - 1):
        with pytest.raises(EventsGone):
            await talk.turns.follow("acme", asked.session_id, asked.turn_id, after=after)
    # Who has heard them all has missed nothing.
    assert await talk.events(asked, after=last) == []
    assert (await talk.turns.get("acme", asked.session_id, asked.turn_id))["status"] == "completed"
    assert await talk.said(asked.session_id) == [("user", "Why?"), ("assistant", "a")]


async def test_turns_are_found_in_their_tenants_session_alone(talk: Talk) -> None:
    asked = await answered(talk, "a")
    other = await talk.new_session()
    for tenant, session_id, turn_id in [
        ("tight", asked.session_id, asked.turn_id),
        ("acme", other, asked.turn_id),
        ("acme", asked.session_id, NO_TURN),
        ("acme", asked.session_id, "../../etc"),
        ("acme", "../../etc", asked.turn_id),
    ]:
        with pytest.raises(ObjectNotFound):
            await talk.turns.follow(tenant, session_id, turn_id)
        with pytest.raises(ObjectNotFound):
            await talk.turns.get(tenant, session_id, turn_id)
        with pytest.raises(ObjectNotFound):
            await talk.turns.cancel(tenant, session_id, turn_id)
    with pytest.raises(ObjectNotFound):
        await talk.turns.page("tight", asked.session_id, limit=10, before=None)
    with pytest.raises(ObjectNotFound):
        await talk.turns.page("acme", asked.session_id, limit=10, before="../..")


async def test_turns_are_listed_newest_first_page_by_page(talk: Talk) -> None:
    chat = talk.replica(EchoModel("a"))
    session_id = await talk.new_session()
    ids = []
    for _ in range(5):
        events = await talk.answer(chat, question(session_id=session_id))
        ids.append(events[0]["data"]["turn_id"])
    listed: list[str] = []
    before = None
    while True:
        page = await talk.turns.page("acme", session_id, limit=2, before=before)
        listed += [turn["id"] for turn in page["turns"]]
        before = listed[-1]
        if not page["has_more"]:
            break
    assert listed == ids[::-1]


async def test_a_turn_that_waits_is_cancelled_at_once(talk: Talk) -> None:
    model = EchoModel("a", stalls_at=0)
    chat = talk.replica(model)
    first = await chat.begin(question("One"))
    second = await chat.begin(question("Two", session_id=first.session_id))
    turn = await talk.turns.cancel("acme", second.session_id, second.turn_id)
    assert turn["status"] == "cancelled"
    assert types_of(await talk.events(second)) == ["turn.queued", "turn.cancelled"]
    model.may_go_on.set()
    assert (await talk.ended(first))["status"] == "completed"
    assert await talk.said(first.session_id) == [("user", "One"), ("assistant", "a")]


async def test_a_turn_whose_runner_does_not_answer_is_shown_as_asked_to_end(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "CANCELLED_WITHIN_S", 0.05)
    model = EchoModel("a", stalls_at=0)
    chat = talk.replica(model)
    asked = await chat.begin(question())
    await talk.heard(asked, "sources")
    talk.objects.failing["ChatSession", "finish"] = [LOST] * 10
    turn = await talk.turns.cancel("acme", asked.session_id, asked.turn_id)
    assert (turn["status"], turn["cancel_requested"]) == ("in_progress", True)
    assert (await talk.ended(asked))["status"] == "cancelled"

"""Is an answer whose runner was lost gone on with by another where its model can, as one answer?"""

from __future__ import annotations

import pytest

from actors import ChatSession, turn_recovery
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.turn import Claim
from tests.turns import USAGE, answered, asked, begun, called, created, events_of, history_of, said, sources, types_of
from tests.unit.turns.lost import LAPSED_S, offered


@pytest.fixture
async def session(lab: Lab) -> Stub[ChatSession]:
    session = lab.get(ChatSession, "acme", "s1")
    await session.create()
    return session


async def _taken(lab: Lab, session: Stub[ChatSession], runner: str = "another") -> Claim:
    """The runner of turn `t1` is lost, and another one takes it."""
    await lab.advance(LAPSED_S)
    assert await offered(lab) == ["t1"]
    claim: Claim | None = (await session.claim("t1", runner))["claim"]
    assert claim is not None
    return claim


async def test_the_next_runner_gets_what_was_told_and_adds_to_it(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, [created(), sources("a"), *said("be", "cau")], USAGE)
    claim = await _taken(lab, session)
    assert (claim["attempt"], claim["last_event"], claim["is_created"]) == (2, 5, True)
    assert claim["told"] == {"text": "becau", "sources": [{"id": "a"}], "output_tokens": 5}
    # Who was taken for dead adds nothing any more.
    assert await session.record("t1", attempt, 4, said("late")) is False
    await session.finish("t1", claim["attempt"], 5, said("se"), "completed", finish_reason="stop", usage=USAGE)
    events = await events_of(session, "t1")
    assert [event["type"] for event in events[4:]] == ["turn.retrying", "text.delta", "turn.completed"]
    assert events[4]["data"] == {"attempt": 2, "reason": "runner_lost", "continues": True}
    asking, answering = (await session.history())["messages"]
    assert (asking["role"], answering["role"], answering["content"]) == ("user", "assistant", "because")
    assert answering["data"]["sources"] == [{"id": "a"}]
    assert answering["data"]["usage"] == {
        "input_tokens": 20,
        "output_tokens": 10,
        "total_tokens": 30,
        "estimated": True,
    }


async def test_it_is_gone_on_with_no_more_often_than_its_attempts_last(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", continues=True, attempts_max=2)
    await session.record("t1", attempt, 0, said("be"))
    claim = await _taken(lab, session)
    await session.record("t1", claim["attempt"], claim["last_event"], said("cause"))
    await lab.advance(LAPSED_S)
    turn = await session.turn("t1")
    assert (turn["status"], turn["finish_reason"]) == ("incomplete", "runner_lost")
    assert (await history_of(session))[-1] == ("assistant", "because")


async def test_a_runner_that_is_stopped_may_give_it_back_half_told(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, said("be"))
    assert await session.release("t1", attempt, "RunnerStopped") is True
    claim = (await session.claim("t1", "another"))["claim"]
    assert claim is not None
    assert claim["told"] is not None
    assert claim["told"]["text"] == "be"


async def test_what_tools_were_called_for_is_not_gone_on_with(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, [*said("let me see"), called("c1"), answered("c1", 4), *said("it is")])
    await lab.advance(LAPSED_S)
    assert (await session.turn("t1"))["status"] == "incomplete"
    assert (await history_of(session))[-1] == ("assistant", "it is")


async def test_one_that_is_to_stop_is_not_gone_on_with(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, said("be"))
    await session.cancel("t1")
    await lab.advance(LAPSED_S)
    assert (await session.turn("t1"))["status"] == "cancelled"


async def test_a_turn_of_which_nothing_was_told_is_begun_anew(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, [created(), sources("a")])
    claim = await _taken(lab, session)
    assert claim["told"] is None
    await session.finish("t1", claim["attempt"], claim["last_event"], said("yes"), "completed")
    assert "sources" not in (await session.history())["messages"][-1]["data"]
    assert await types_of(session, "t1") == ["turn.created", "sources", "turn.retrying", "text.delta", "turn.completed"]


async def test_one_that_nobody_goes_on_with_keeps_what_was_told(
    lab: Lab, session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_recovery, "OFFERS_MAX", 2)
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, said("be"))
    for _ in range(5):
        await lab.advance(LAPSED_S)
    turn = await session.turn("t1")
    assert (turn["status"], turn["finish_reason"]) == ("incomplete", "not_run")
    assert (await history_of(session))[-1] == ("assistant", "be")


@pytest.mark.parametrize("how", ["cancelled", "cleared", "rolled back"])
async def test_one_that_waits_to_be_gone_on_with_can_be_stopped(lab: Lab, session: Stub[ChatSession], how: str) -> None:
    attempt = await begun(session, "t1", continues=True)
    await session.record("t1", attempt, 0, said("be"), USAGE)
    await lab.advance(LAPSED_S)
    if how == "cancelled":
        await session.cancel("t1")
        assert (await history_of(session))[-1] == ("assistant", "be")
    elif how == "cleared":
        await session.clear()
        assert await history_of(session) == []
    else:
        await session.begin(asked("t2", "then?", on_conflict="rollback"), "r2")
        assert await history_of(session) == [("user", "then?")]
    turn = await session.turn("t1")
    assert (turn["status"], turn["usage"]) == ("cancelled", {**USAGE, "estimated": True})

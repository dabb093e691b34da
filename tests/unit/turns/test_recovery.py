"""Does a turn whose runner, waiter or host was lost come to its end?"""

from __future__ import annotations

import asyncio

import pytest

from actors import ChatSession, TurnQueue
from actors.message import NO_RESULT
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.turn import LEASE_S
from actors.turn_recovery import OFFERS_MAX
from tests.turns import (
    QUESTION,
    USAGE,
    answer,
    answered,
    asked,
    begun,
    called,
    created,
    events_of,
    history_of,
    said,
    sources,
    types_of,
)
from tests.unit.objects_fixtures import refusing
from tests.unit.turns.lost import LAPSED_S, backend, counted, offered, queue


@pytest.fixture
async def session(lab: Lab) -> Stub[ChatSession]:
    session = lab.get(ChatSession, "acme", "s1")
    await session.create()
    return session


# -- the runner is lost


async def test_a_turn_of_which_nothing_was_told_is_run_again(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [created(), sources("a")])
    await lab.advance(LEASE_S - 1)
    assert (await session.turn("t1"))["status"] == "in_progress"
    await lab.advance(2)
    assert (await session.turn("t1"))["status"] == "queued"
    retrying = (await events_of(session, "t1"))[-1]
    assert (retrying["type"], retrying["data"]) == (
        "turn.retrying",
        {"attempt": 2, "reason": "runner_lost", "continues": False},
    )
    assert await offered(lab) == ["t1"]
    claim = (await session.claim("t1", "another"))["claim"]
    assert (claim["attempt"], claim["message"], claim["history"]) == (2, QUESTION, [])
    # The first one was only slow.
    assert await session.record("t1", attempt, 2, said("late")) is False
    assert await session.attend("t1", attempt) is False
    await session.finish("t1", 2, claim["last_event"], said("x"), "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "x")]


async def test_a_turn_is_noticed_soon_enough(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for number in range(5):
        await session.record("t1", attempt, number, said("x"))
        await lab.advance(LEASE_S - 0.5)
    assert (await session.turn("t1"))["status"] == "in_progress"
    await lab.advance(1)
    assert (await session.turn("t1"))["status"] == "incomplete"


async def test_a_runner_that_attends_keeps_its_turn(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for _ in range(5):
        assert await session.attend("t1", attempt) is True
        await lab.advance(LEASE_S - 1)
    assert (await session.turn("t1"))["status"] == "in_progress"
    assert await offered(lab) == []


async def test_what_was_told_is_kept_and_the_turn_not_run_again(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [sources("a"), *said("hal", "f")])
    await lab.advance(LAPSED_S)
    turn = await session.turn("t1")
    assert (turn["status"], turn["finish_reason"], turn["error"]["code"]) == ("incomplete", "runner_lost", "RunnerLost")
    assert (await events_of(session, "t1"))[-1]["data"] == {
        "turn_id": "t1",
        "session_id": "s1",
        "message_id": turn["answer_id"],
        "usage": None,
        "reason": "runner_lost",
        "error": turn["error"],
    }
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]
    assert (await session.history())["messages"][-1]["data"]["sources"] == [{"id": "a"}]
    assert await offered(lab) == []
    assert (await session.finish("t1", attempt, 3, said("x"), "completed"))["turn"] == turn


async def test_tools_that_were_called_are_answered_with_an_error(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [called("a"), answered("a", 1), *said("so"), called("b")])
    await lab.advance(LAPSED_S)
    assert await history_of(session) == [
        ("user", QUESTION),
        ("assistant", ""),
        ("tool", "1"),
        ("assistant", "so"),
        ("tool", NO_RESULT),
    ]
    assert (await session.turn("t1"))["answer_id"] == 4


async def test_a_runner_that_was_lost_while_it_was_to_stop_has_stopped(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    await session.cancel("t1")
    await lab.advance(LAPSED_S)
    assert (await session.turn("t1"))["status"] == "cancelled"
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]


async def test_a_runner_that_does_not_stop_is_not_waited_for(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.cancel("t1")
    for number in range(4):
        assert await session.attend("t1", attempt) is False
        assert await session.record("t1", attempt, number, said("x")) is False
        await lab.advance(LEASE_S / 3)
    assert (await session.turn("t1"))["status"] == "cancelled"
    assert (await events_of(session, "t1"))[-1]["type"] == "turn.cancelled"


async def test_a_lost_turn_that_was_rolled_back_leaves_nothing(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    await session.begin(asked("t2", "instead?", on_conflict="rollback"), "r2")
    await lab.advance(LAPSED_S)
    await session.claim("t2", "r2")
    assert await history_of(session) == [("user", "instead?")]


async def test_no_more_runners_try_than_may(lab: Lab, session: Stub[ChatSession]) -> None:
    await session.begin(asked("t1", attempts_max=2), "r1")
    await lab.advance(LAPSED_S)
    assert (await session.claim("t1", "r2"))["claim"]["attempt"] == 2
    await lab.advance(LAPSED_S)
    turn = await session.turn("t1")
    assert (turn["status"], turn["error"]["code"], turn["error"]["retryable"]) == ("failed", "RunnerLost", True)
    # Who has heard of no first try hears of no second.
    assert await types_of(session, "t1") == ["error"]
    assert await history_of(session) == [("user", QUESTION)]


async def test_what_gave_way_comes_back_when_the_runner_is_lost_for_good(lab: Lab, session: Stub[ChatSession]) -> None:
    await answer(session, "t1", "first")
    await session.begin(asked("t2", None, attempts_max=1), "r2")
    await lab.advance(LAPSED_S)
    assert (await session.turn("t2"))["status"] == "failed"
    assert await history_of(session) == [("user", QUESTION), ("assistant", "first")]


async def test_readers_are_told_when_a_runner_is_lost(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    reader = asyncio.ensure_future(session.events("t1", 1, 15.0))
    await session.events("t1")
    await lab.advance(LAPSED_S)
    page = await asyncio.wait_for(reader, 5)
    assert ([event["type"] for event in page["events"]], page["is_over"]) == (["turn.incomplete"], True)


# -- nobody is there


async def test_a_turn_that_was_taken_and_dropped_is_offered_again(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [created()])
    await lab.advance(LAPSED_S)
    assert await offered(lab) == ["t1"]
    for _ in range(3):
        await lab.advance(LAPSED_S)
        assert await offered(lab) == ["t1"]
    assert (await session.claim("t1", "r2"))["claim"]["attempt"] == 2
    await session.finish("t1", 2, 2, said("x"), "completed")
    await lab.advance(10 * LEASE_S)
    assert await offered(lab) == []


async def test_a_turn_that_nobody_takes_is_offered_once_at_a_time(lab: Lab, session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await lab.advance(5 * LEASE_S)
    assert await offered(lab) == ["t1"]


async def test_a_turn_that_nobody_takes_fails_in_the_end(lab: Lab, session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2", "second?"), "r2")
    await lab.advance((OFFERS_MAX + 5) * LEASE_S)
    first, second = await session.turn("t1"), await session.turn("t2")
    assert (first["status"], first["error"]["code"], second["status"]) == ("failed", "NotRun", "queued")
    assert (await session.claim("t2", "r3"))["claim"] is not None
    await lab.advance((OFFERS_MAX + 5) * LEASE_S)
    assert (await session.turn("t2"))["status"] == "failed"
    assert await history_of(session) == [("user", QUESTION), ("user", "second?")]


async def test_a_waiting_turn_whose_waiter_died_is_offered_when_its_time_comes(
    lab: Lab, session: Stub[ChatSession]
) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("t2"), "r2")
    for _ in range(5):
        await lab.advance(LEASE_S - 1)
        assert await session.attend("t1", attempt) is True
    assert await offered(lab) == []
    await session.finish("t1", attempt, 0, [], "completed")
    await lab.advance(LEASE_S - 1)
    assert await offered(lab) == []
    await lab.advance(2)
    assert await offered(lab) == ["t2"]
    assert (await session.turn("t2"))["status"] == "queued"
    assert (await session.claim("t2", "another"))["claim"] is not None


async def test_a_waiting_turn_whose_waiter_lives_is_its_waiters(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("t2"), "r2")
    waiting = asyncio.ensure_future(session.claim("t2", "r2", 15.0))
    await session.events("t2")
    await lab.advance(LEASE_S - 1)
    await session.finish("t1", attempt, 0, [], "completed")
    assert (await asyncio.wait_for(waiting, 5))["claim"] is not None
    await lab.advance(LEASE_S - 1)
    assert await offered(lab) == []


async def test_all_that_wait_come_to_their_end_one_after_another(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id, turn_id), "r")
    await lab.advance((2 * OFFERS_MAX + 10) * LEASE_S)
    statuses = [turn["status"] for turn in (await session.turns())["turns"]]
    assert statuses == ["failed", "failed", "incomplete"]
    for turn_id in ("t1", "t2", "t3"):
        await events_of(session, turn_id)


async def test_one_that_gives_a_turn_back_has_time_to_take_it_again(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    await lab.advance(LEASE_S - 1)
    assert await offered(lab) == []
    await lab.advance(2)
    assert await offered(lab) == ["t1"]


async def test_a_queue_that_can_not_be_reached_holds_nothing_up(lab: Lab, session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    with refusing(backend(lab), TurnQueue, "offer"):
        await lab.advance(LAPSED_S)
    assert (await session.turn("t1"))["status"] == "queued"
    assert await offered(lab) == []
    await lab.advance(LAPSED_S)
    assert await offered(lab) == ["t1"]


async def test_a_runner_that_claims_while_the_alarm_waits_keeps_its_turn(lab: Lab, session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    with lab.hold_turns(queue(lab)):
        lab.clock.advance(LAPSED_S)
        ringing = [turn.wait() for turn in lab._running.host.fire_due()]
        # The alarm waits for the queue; its runner comes back before it.
        claim = (await asyncio.wait_for(session.claim("t1", "r2"), 5))["claim"]
        assert claim["attempt"] == 2
    await asyncio.gather(*ringing)
    assert (await session.turn("t1"))["status"] == "in_progress"
    assert await session.record("t1", 2, claim["last_event"], said("x")) is True


# -- hosts are lost


@pytest.mark.parametrize("how", ["crash", "restart", "evict"])
async def test_a_turn_goes_on_where_it_was(lab: Lab, session: Stub[ChatSession], how: str) -> None:
    attempt = await begun(session, "t1", key="k")
    await session.record("t1", attempt, 0, said("be"))
    if how == "evict":
        lab.evict(session)
    else:
        getattr(lab, how)()
    assert await session.attend("t1", attempt) is True
    assert (await session.begin(asked("t9", key="k"), "r9"))["turn"]["id"] == "t1"
    assert await session.record("t1", attempt, 0, said("be", "cause")) is True
    await session.finish("t1", attempt, 2, [], "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]


@pytest.mark.parametrize("reached_disk", [False, True])
@pytest.mark.parametrize("step", ["begin", "record", "finish"])
async def test_a_step_whose_commit_lost_the_host_is_done_once(
    lab: Lab, session: Stub[ChatSession], step: str, reached_disk: bool
) -> None:
    def lose(now: str) -> None:
        if step == now:
            lab.crash_in_next_commit(session, reached_disk=reached_disk)

    lose("begin")
    attempt = await begun(session, "t1", key="k")
    lose("record")
    assert await session.record("t1", attempt, 0, said("x")) is True
    lose("finish")
    ended = await session.finish("t1", attempt, 1, said("y"), "completed", usage=USAGE)
    assert ended["turn"]["status"] == "completed"
    assert await types_of(session, "t1") == ["text.delta", "text.delta", "turn.completed"]
    assert await history_of(session) == [("user", QUESTION), ("assistant", "xy")]
    await lab.advance(1)
    assert await counted(lab) == [("m", 1, 10, 5)]


async def test_readers_outlive_the_host(lab: Lab, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await session.events("t1")
    lab.crash()
    await session.record("t1", attempt, 0, said("x"))
    assert [event["number"] for event in (await asyncio.wait_for(reader, 10))["events"]] == [1]


@pytest.mark.parametrize("reached_disk", [False, True])
async def test_an_alarm_that_lost_its_host_ends_the_turn_once(
    lab: Lab, session: Stub[ChatSession], reached_disk: bool
) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    lab.clock.advance(LAPSED_S)
    lab.crash_in_next_commit(session, reached_disk=reached_disk)
    await asyncio.gather(*(turn.wait() for turn in lab._running.host.fire_due()))
    await asyncio.sleep(0)
    await lab.advance(60)
    assert await types_of(session, "t1") == ["text.delta", "turn.incomplete"]
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]

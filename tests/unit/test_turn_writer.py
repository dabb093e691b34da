"""Is all that a runner adds written down once and in order, soon and in few batches?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors import ChatSession, InvalidArgument, ObjectReset
from actors.runtime.namespace import Stub
from actors.turn import LEASE_S, Claim
from deployments import turn_writer
from deployments.question import new_turn_id
from deployments.turn_writer import FLUSH_EVERY_S, FLUSH_PAUSE_MAX_S, FLUSH_PIECES, Pace, TurnWriter
from tests.turns import USAGE, asked
from tests.unit.objects_fixtures import ring
from tests.unit.talk import WITHIN_S, Talk, talk_at, text_of, types_of, until

#: Longer than any test runs: what leaves, leaves for another reason.
NEVER_S = 3600.0
LOST = ObjectReset("ChatSession/acme:s", "its host was lost")


@dataclass(kw_only=True, slots=True)
class Claimed:
    """A turn that was begun and claimed."""

    talk: Talk
    session: Stub[ChatSession]
    claim: Claim

    @asynccontextmanager
    async def writer(self, pace: Pace | None = None, **settings: float) -> AsyncIterator[TurnWriter]:
        writer = TurnWriter(self.session, self.claim, pace=pace or Pace(), **settings)
        writer.start()
        try:
            yield writer
        finally:
            async with asyncio.timeout(WITHIN_S):
                await writer.close()

    async def events(self) -> list[Any]:
        page = await self.session.events(self.claim["turn_id"])
        return list(page["events"])

    async def has(self, count: int) -> None:
        """Waits until so many events are there."""

        async def holds() -> bool:
            return len(await self.events()) >= count

        await until(holds)

    @property
    def batches(self) -> int:
        return self.talk.objects.calls.count(("ChatSession", "record"))


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


@pytest.fixture
async def claimed(talk: Talk) -> Claimed:
    session = talk.sessions.get("acme", await talk.new_session())
    begun = await session.begin(asked(new_turn_id()), "runner")
    return Claimed(talk=talk, session=session, claim=begun["claim"])


async def test_everything_up_to_the_first_word_is_written_in_a_moment(claimed: Claimed) -> None:
    async with claimed.writer(pace=Pace(NEVER_S)) as writer:
        await writer.add("turn.created", {})
        await claimed.has(1)
        await writer.add("sources", {"sources": []})
        await claimed.has(2)
        await writer.add("text.delta", {"text": "Be"})
        await claimed.has(3)
        await writer.add("text.delta", {"text": "cause"})
        await writer.add("text.delta", {"text": "."})
    assert text_of(await claimed.events()) == "Be"
    assert writer.take_rest() == (3, [{"type": "text.delta", "data": {"text": "cause."}}])
    assert writer.has_content


async def test_what_comes_before_the_answer_of_a_quick_model_leaves_with_its_first_word(
    claimed: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_writer, "FIRST_WAIT_S", NEVER_S)
    async with claimed.writer(pace=Pace(NEVER_S)) as writer:
        await writer.add("sources", {"sources": []})
        await writer.add("text.delta", {"text": "Be"})
        await claimed.has(2)
    assert claimed.batches == 1


async def test_pieces_that_come_fast_leave_together_as_one_event(claimed: Claimed) -> None:
    async with claimed.writer(pace=Pace(NEVER_S)) as writer:
        await writer.add("text.delta", {"text": "0"})
        await claimed.has(1)
        for number in range(1, FLUSH_PIECES + 1):
            await writer.add("text.delta", {"text": f" {number}"})
        await claimed.has(2)
    assert claimed.batches == 2
    events = await claimed.events()
    assert types_of(events) == ["text.delta", "text.delta"]
    assert text_of(events) == " ".join(map(str, range(FLUSH_PIECES + 1)))


async def test_pieces_that_come_slowly_leave_after_the_pause(claimed: Claimed) -> None:
    async with claimed.writer(pace=Pace(0.001)) as writer:
        for number in range(5):
            await writer.add("text.delta", {"text": str(number)})
            await claimed.has(number + 1)
    assert text_of(await claimed.events()) == "01234"


def test_the_more_answers_a_process_writes_the_longer_each_pauses_within_limits() -> None:
    pace = Pace()
    pauses = []
    for _ in range(100):
        pace.enter()
        pauses.append(pace.pause_s)
    assert pauses[0] == FLUSH_EVERY_S < pauses[3] < pauses[5] < pauses[-1] == FLUSH_PAUSE_MAX_S
    for _ in range(100):
        pace.leave()
    assert pace.pause_s == FLUSH_EVERY_S


async def test_text_before_and_after_another_event_stays_apart(claimed: Claimed) -> None:
    async with claimed.writer() as writer:
        await writer.add("text.delta", {"text": "Let me see"})
        await writer.add("tool.call", {"id": "1", "name": "look", "arguments": "{}"})
        await writer.add("tool.result", {"id": "1", "name": "look", "result": {}})
        await writer.add("text.delta", {"text": "Found"})
        await claimed.has(4)
    assert types_of(await claimed.events()) == ["text.delta", "tool.call", "tool.result", "text.delta"]


async def test_who_adds_faster_than_it_is_written_waits(claimed: Claimed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_writer, "WAITING_CHARS_MAX", 1000)
    async with claimed.writer(pace=Pace(0.001)) as writer, asyncio.timeout(WITHIN_S):
        for _ in range(20):
            await writer.add("text.delta", {"text": "x" * 400})
        await claimed.has(1)
    written = text_of(await claimed.events())
    _, rest = writer.take_rest()
    assert all(len(event["data"]["text"]) <= 1400 for event in [*await claimed.events(), *rest])
    assert len(written) + sum(len(event["data"]["text"]) for event in rest) == 8000


@pytest.mark.parametrize("ran", [False, True])
async def test_a_batch_that_fails_is_written_again_and_once(claimed: Claimed, ran: bool) -> None:
    objects = claimed.talk.objects
    (objects.failing_after if ran else objects.failing)["ChatSession", "record"] = [LOST, LOST]
    async with claimed.writer(pace=Pace(0.001)) as writer:
        await writer.add("turn.created", {})
        await writer.add("text.delta", {"text": "a"})
        await claimed.has(2)
        await writer.add("text.delta", {"text": "b"})
        await claimed.has(3)
    assert writer.failure is None
    assert types_of(await claimed.events()) == ["turn.created", "text.delta", "text.delta"]
    assert text_of(await claimed.events()) == "ab"


@pytest.mark.parametrize("ran", [False, True])
async def test_what_can_not_be_written_is_there_for_the_end_of_the_turn(claimed: Claimed, ran: bool) -> None:
    objects = claimed.talk.objects
    (objects.failing_after if ran else objects.failing)["ChatSession", "record"] = [LOST] * 100
    async with claimed.writer(write_within_s=0.0) as writer, asyncio.timeout(WITHIN_S):
        await writer.add("text.delta", {"text": "a"})
        await writer.stopped.wait()
        assert isinstance(writer.failure, ObjectReset)
        await writer.add("text.delta", {"text": "b"})
    after, rest = writer.take_rest()
    claim = claimed.claim
    await claimed.session.finish(claim["turn_id"], claim["attempt"], after, rest, "incomplete")
    assert text_of(await claimed.events()) == "ab"


async def test_what_will_never_be_taken_is_not_tried_again(claimed: Claimed) -> None:
    claimed.talk.objects.failing["ChatSession", "record"] = [InvalidArgument("events", "", "is refused")] * 2
    async with claimed.writer() as writer, asyncio.timeout(WITHIN_S):
        await writer.add("text.delta", {"text": "a"})
        await writer.stopped.wait()
    assert isinstance(writer.failure, InvalidArgument)
    assert claimed.batches == 1


async def test_it_stops_when_the_turn_is_to_stop_or_has_gone(claimed: Claimed) -> None:
    await claimed.session.cancel(claimed.claim["turn_id"])
    async with claimed.writer() as writer, asyncio.timeout(WITHIN_S):
        await writer.add("text.delta", {"text": "a"})
        await writer.stopped.wait()
    # What had come before the runner knew is written all the same.
    assert (writer.failure, text_of(await claimed.events())) == (None, "a")
    await claimed.session.delete()
    async with claimed.writer() as writer, asyncio.timeout(WITHIN_S):
        await writer.add("text.delta", {"text": "a"})
        await writer.stopped.wait()
    assert writer.failure is None


async def test_what_was_used_is_told_with_each_batch(claimed: Claimed) -> None:
    writer = TurnWriter(claimed.session, claimed.claim, pace=Pace())
    writer.start(lambda: USAGE)
    await writer.add("text.delta", {"text": "be"})
    await claimed.has(1)
    await writer.close()
    # Nothing more is heard of the runner.
    claimed.talk.clock.advance(LEASE_S + 1)
    await ring(claimed.talk.objects, claimed.talk.clock)
    assert (await claimed.session.turn(claimed.claim["turn_id"]))["usage"] == {**USAGE, "estimated": True}

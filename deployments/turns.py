"""How is a turn followed, looked up and stopped?

Readers read what the session has written down and nothing else: any number of them, from any process, from any event
on, and all see the same. Each hears one event that ends the turn, also where the session goes in the middle of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from actors import ChatSession, DurableError, ObjectNotFound
from actors.runtime.namespace import Stub
from actors.session_views import AnsweredTurn, TurnPage
from actors.turn import FINAL, EventPage, TurnError, TurnEvent, TurnInfo
from deployments.errors import EventsGone
from deployments.question import Asked
from deployments.retelling import is_whole, retold
from deployments.sessions import Sessions

#: How long the session is asked at a time for the next event. Shorter than whoever looks after objects waits for one
#: to be still.
EVENTS_WAIT_S = 3.0
#: How long a reader goes on asking a session that can't be reached.
LOST_FOR_MAX_S = 60.0
LOST_PAUSE_S = 0.5
#: How long a caller that has a turn stopped waits for its end.
CANCELLED_WITHIN_S = 5.0
_TURN_ID = re.compile(r"t[0-9a-f]{24}")


class Turns:
    """The turns of all sessions."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def answer(self, tenant: str, asked: Asked) -> AsyncIterator[TurnEvent]:
        """All events of the turn that a question has become, as they come.

        Of a question that was asked before, and whose events are no longer kept, what they came to.

        Raises:
            ObjectNotFound, EventsGone: as `follow`, where the question was asked before and its answer is gone as well.
        """
        if asked.joined:
            try:
                return await self.follow(tenant, asked.session_id, asked.turn_id)
            except EventsGone:
                return await self._retold(tenant, asked)
        nothing: EventPage = {"events": [], "is_over": False}
        return self._follow(self._sessions.get(tenant, asked.session_id), asked.turn_id, nothing, 0)

    async def follow(self, tenant: str, session_id: str, turn_id: str, *, after: int = 0) -> AsyncIterator[TurnEvent]:
        """The turn's events behind number `after`, as they come, up to the last one.

        Raises:
            ObjectNotFound: at once.
            EventsGone: at once; the turn has ended, and its events are no longer kept.
        """
        session = self._sessions.get(tenant, session_id)
        _require_turn_id(turn_id)
        page: EventPage = await session.events(turn_id, after)
        if page["is_over"] and not page["events"] and (await session.turn(turn_id))["last_event"] > after:
            raise EventsGone(turn_id)
        return self._follow(session, turn_id, page, after)

    async def _retold(self, tenant: str, asked: Asked) -> AsyncIterator[TurnEvent]:
        answered: AnsweredTurn = await self._sessions.get(tenant, asked.session_id).answered(asked.turn_id)
        if not is_whole(answered):
            raise EventsGone(asked.turn_id)

        async def events() -> AsyncIterator[TurnEvent]:
            for event in retold(asked.session_id, answered):
                yield event

        return events()

    async def _follow(
        self, session: Stub[ChatSession], turn_id: str, page: EventPage, after: int
    ) -> AsyncIterator[TurnEvent]:
        loop = asyncio.get_running_loop()
        heard_at_s = loop.time()
        while True:
            for event in page["events"]:
                yield event
                after = event["number"]
            if page["is_over"]:
                return
            try:
                page = await session.events(turn_id, after, EVENTS_WAIT_S)
                heard_at_s = loop.time()
            except ObjectNotFound:
                # The session was deleted, or has expired: nothing comes any more, and nothing can be read again.
                yield _gone(session.id.name, turn_id, after + 1)
                return
            except DurableError as error:
                if not error.retryable or loop.time() > heard_at_s + LOST_FOR_MAX_S:
                    raise
                page = {"events": [], "is_over": False}
                await asyncio.sleep(error.retry_after_s or LOST_PAUSE_S)

    async def so_far(self, tenant: str, session_id: str, turn_id: str) -> list[TurnEvent]:
        """The turn's events until now."""
        session = self._sessions.get(tenant, session_id)
        _require_turn_id(turn_id)
        events: list[TurnEvent] = []
        while True:
            page: EventPage = await session.events(turn_id, events[-1]["number"] if events else 0)
            events += page["events"]
            if page["is_over"] or not page["events"]:
                return events

    async def get(self, tenant: str, session_id: str, turn_id: str) -> TurnInfo:
        """
        Raises:
            ObjectNotFound
        """
        _require_turn_id(turn_id)
        turn: TurnInfo = await self._sessions.get(tenant, session_id).turn(turn_id)
        return turn

    async def page(self, tenant: str, session_id: str, *, limit: int, before: str | None) -> TurnPage:
        """Turns, newest first."""
        if before is not None:
            _require_turn_id(before)
        page: TurnPage = await self._sessions.get(tenant, session_id).turns(limit, before)
        return page

    async def cancel(self, tenant: str, session_id: str, turn_id: str) -> TurnInfo:
        """Has the turn stopped, and waits a little for its end. One that has ended stays as it is."""
        _require_turn_id(turn_id)
        session = self._sessions.get(tenant, session_id)
        turn: TurnInfo = await session.cancel(turn_id)
        try:
            async with asyncio.timeout(CANCELLED_WITHIN_S):
                while turn["status"] not in FINAL:
                    await session.events(turn_id, turn["last_event"], CANCELLED_WITHIN_S)
                    turn = await session.turn(turn_id)
        except TimeoutError:
            pass  # it is shown as it is: asked to end
        return turn


def _gone(session_id: str, turn_id: str, number: int) -> TurnEvent:
    problem: TurnError = {
        "code": "ObjectNotFound",
        "message": "the session was deleted or has expired",
        "retryable": False,
        "retry_after_s": None,
    }
    data = {"turn_id": turn_id, "session_id": session_id, **problem, "usage": None}
    return {"number": number, "type": "error", "data": data}


def _require_turn_id(turn_id: str) -> None:
    if not _TURN_ID.fullmatch(turn_id):
        raise ObjectNotFound("turn/?")

"""How do those who ask, those who answer and those who read take part in a session's turns?

This lets them in, and has them wait where there is something to wait for. What becomes of a turn is for `TurnLedger`
and its parts to say. None of it is there for a session that was not made, was deleted or has expired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors import session_schema
from actors.message import NewMessage
from actors.message_log import MessageLog
from actors.news import News
from actors.runtime import DurableObject, ObjectNotFound, idempotent, interleaved, read
from actors.session_parts import SessionParts
from actors.session_row import SessionRow
from actors.session_views import AnsweredTurn, Ended, TurnPage
from actors.turn import LEASE_S, Begun, Claiming, EventPage, FinalStatus, NewEvent, NewTurn, TurnError, TurnInfo, Usage
from actors.turn_events import TurnEvents
from actors.turn_ledger import TurnLedger
from actors.turn_rows import TurnRows
from actors.usage_outbox import UsageOutbox

#: How long a caller may have the session wait for something to happen.
WAIT_MAX_S = 20.0
#: How long a runner may wait with one renewal of its claim: it renews it three times before it lapses.
ATTEND_MAX_S = LEASE_S / 3


class SessionTurns(DurableObject):
    """The part of a session that its turns are."""

    migrations = session_schema.migrations

    def start(self) -> None:
        #: Of events, and of what has runners begin and stop: most events concern no runner that waits.
        self._news, self._moves = News(), News()
        self._is_gone = False
        self._messages = MessageLog(self.storage)
        self._row = SessionRow(self.id, self.storage, self.clock, self._messages)
        self._outbox = UsageOutbox(self.storage, self.clock)
        turns = TurnRows(self.id, self.storage)
        parts = SessionParts(
            object_id=self.id,
            storage=self.storage,
            clock=self.clock,
            row=self._row,
            messages=self._messages,
            turns=turns,
            events=TurnEvents(self.storage, turns, told=self._news.tell),
            outbox=self._outbox,
            moved=self._moves.tell,
            plan=self._plan,
        )
        self._turns = TurnLedger(parts)

    @idempotent
    def begin(self, new: NewTurn, runner: str) -> Begun:
        """Enters a turn into the ledger, and hands it to the runner if no other is before it.

        Raises:
            RequestReused, ObjectConflict, InvalidArgument: see `TurnLedger.begin`.
        """
        self._row.require()
        self._row.touch()
        turn, joined = self._turns.begin(new)
        claim = None if joined and turn["id"] != new["turn_id"] else self._turns.claims.claim(turn["id"], runner)
        return {"turn": self._turns.rows.info(turn["id"]), "claim": claim, "joined": joined}

    @interleaved
    @idempotent
    async def claim(self, turn_id: str, runner: str, wait_s: float = 0.0) -> Claiming:
        """Hands the turn to the runner, waiting for its time to come. A runner is known by a name used for one turn."""
        self._row.require()
        claim = self._turns.claims.claim(turn_id, runner)
        if claim is None:
            await self._until(self._moves, lambda: self._turns.claims.is_claimable(turn_id), wait_s)
            claim = self._turns.claims.claim(turn_id, runner)
        return {"turn": self._turns.rows.info(turn_id), "claim": claim}

    @interleaved
    @idempotent
    async def attend(self, turn_id: str, attempt: int, wait_s: float = 0.0) -> bool:
        """Says that the turn's runner lives, and waits for whether it is to stop. True: it may go on.

        Waits no longer than is good for the claim; a runner that lives comes again at once.
        """
        self._row.require()
        self._row.touch()
        self._turns.claims.renew(turn_id, attempt)
        wait_s = min(wait_s, ATTEND_MAX_S)
        await self._until(self._moves, lambda: not self._turns.claims.goes_on(turn_id, attempt), wait_s)
        return self._turns.claims.goes_on(turn_id, attempt)

    @idempotent
    def record(
        self, turn_id: str, attempt: int, after: int, events: Sequence[NewEvent], used: Usage | None = None
    ) -> bool:
        """Writes down what has happened in a turn since event `after`, and what was used for it until now.

        False: the runner is to stop.
        """
        self._row.require()
        self._row.keep_alive()
        return self._turns.record(turn_id, attempt, after, events, used)

    @idempotent
    def finish(
        self,
        turn_id: str,
        attempt: int,
        after: int,
        events: Sequence[NewEvent],
        status: FinalStatus,
        *,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        error: TurnError | None = None,
        is_listed: bool = False,
    ) -> Ended:
        """Ends a turn: its last events, the answer, its sources and usage are one commit.

        Args:
            is_listed: who runs the turn knows that the session is in the directory, and need not see to it itself.
        """
        self._row.require()
        if is_listed:
            self._row.enlist_at(None)
        turn = self._turns.finish(
            turn_id, attempt, after, events, status, finish_reason=finish_reason, usage=usage, error=error
        )
        return {"turn": turn, **self._row.shown()}

    @idempotent
    def release(self, turn_id: str, attempt: int, reason: str) -> bool:
        """Gives a turn back, to be begun anew or gone on with by whoever claims it; it ends where that may not be."""
        self._row.require()
        return self._turns.recovery.release(turn_id, attempt, reason)

    @idempotent
    def cancel(self, turn_id: str) -> TurnInfo:
        """Stops a turn. One that has ended stays as it is; one that runs is ended by its runner, who is told now."""
        self._row.require()
        return self._turns.cancel(turn_id)

    @read
    def has_begun(self, turn_id: str, key: str | None) -> bool:
        """Whether `begin` would find the turn that the same request has begun."""
        self._row.require()
        return self._turns.rows.begun_as(turn_id, key) is not None

    @read
    def instructions(self, leading: Sequence[NewMessage] = ()) -> list[str]:
        """What the system says before the user says anything, also with messages that are to lead to a question."""
        self._row.require()
        return self._messages.instructions(leading)

    @read
    def turn(self, turn_id: str) -> TurnInfo:
        self._row.require()
        return self._turns.rows.info(turn_id)

    @read
    def asked_as(self, key: str) -> int | None:
        """The newest message of the user that was asked with a key that is `key`, or begins with it and a `-`."""
        self._row.require()
        return self._turns.rows.asked_as(key)

    @read
    def turns(self, limit: int = 20, before: str | None = None) -> TurnPage:
        """The newest turns older than turn `before`."""
        self._row.require()
        found, has_more = self._turns.rows.page(limit, before)
        return {"turns": found, "has_more": has_more}

    @read
    def answered(self, turn_id: str) -> AnsweredTurn:
        self._row.require()
        return {
            "turn": self._turns.rows.info(turn_id),
            "request": self._turns.rows.request(turn_id),
            "messages": self._messages.of_turn(turn_id),
        }

    @idempotent
    def disown(self, turn_id: str) -> int:
        """Forgets the `client` part of a turn's request. Returns how many other turns have one."""
        self._row.require()
        return self._turns.rows.disown(turn_id)

    @interleaved
    @read
    async def events(self, turn_id: str, after: int = 0, wait_s: float = 0.0) -> EventPage:
        """A turn's events behind `after`; waits for the next one where there is none yet."""
        self._row.require()
        page = self._turns.events.page(turn_id, after)
        if not page["events"] and not page["is_over"]:
            await self._until(self._news, lambda: self._turns.events.has_news(turn_id, after), wait_s)
            page = self._turns.events.page(turn_id, after)
        return page

    async def _until(self, news: News, happened: Callable[[], bool], wait_s: float) -> None:
        """Waits for something to have happened, for `wait_s` at most. Whoever waits comes again."""

        def has_happened() -> bool:
            self._require_there()
            return happened()

        await news.until(has_happened, min(wait_s, WAIT_MAX_S))
        self._require_there()

    def _require_there(self) -> None:
        # The file may have gone while a turn waited, and this instance with it.
        if self._is_gone:
            raise ObjectNotFound(str(self.id))
        self._row.require()

    def _remove(self) -> None:
        self.storage.delete_all()
        self._is_gone = True
        self._news.tell()
        self._moves.tell()

    def _plan(self) -> None:
        """Has the alarm come for whatever is due first. One that comes too early is set anew then."""
        all_times = (self._row.next_due_at(), self._turns.rows.next_due_at(), self._outbox.next_due_at())
        times = [time for time in all_times if time is not None]
        set_for = self.storage.get_alarm()
        if times and (set_for is None or min(times) < set_for):
            self.storage.set_alarm(min(times))

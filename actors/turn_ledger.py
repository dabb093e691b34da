"""What becomes of a session's turns?

The ledger keeps each turn's row, its events, and the messages that it adds to the conversation, in the session's own
database and transactions. One turn runs at a time; the others wait in the order in which they came. Whoever runs a turn
holds a claim on it, which lapses unless it is renewed. Whatever is told of a turn is written down first.

It knows nothing of models, documents or HTTP, and starts no work: it says who may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from sqlite_utils import Database

from actors.message import FOR_CLIENT, Draft, Message, drafts_of, ends_as_answer
from actors.runtime import (
    Clock,
    InvalidArgument,
    ObjectConflict,
    ObjectId,
    ObjectNotFound,
    RequestReused,
    Storage,
    fingerprint,
)
from actors.turn import (
    CONTENT,
    FINAL,
    FINAL_EVENT,
    Claim,
    EventPage,
    EventType,
    FinalStatus,
    NewEvent,
    NewTurn,
    TurnError,
    TurnEvent,
    TurnInfo,
    Usage,
    require_recordable,
)
from actors.usage_outbox import UsageOutbox, Used

#: A runner that has not been heard of for so long is taken for dead. It renews its claim several times within that.
LEASE_S = 10.0
#: How often a turn whose time has come is offered, once in a lease, before it fails: long enough for all runners to be
#: replaced by others.
OFFERS_MAX = 30
#: Of a turn's events, as JSON. A model that writes for ever is stopped there.
TURN_CHARS_MAX = 4_000_000
#: Messages that a runner gets with its claim, and more only if the user has said nothing for longer: more than fit into
#: most models.
HISTORY_MESSAGES_MAX = 200
EVENT_PAGE_MAX = 500
EVENT_PAGE_CHARS_MAX = 1_000_000
TURN_PAGE_MAX = 100
#: Rows of turns that have ended, their events long gone: as long as a request is recognised when it comes again.
ENDED_KEPT_MIN = 1000
ENDED_KEPT_S = 86_400.0

_COLUMNS = (
    "id, status, created_at, started_at, ended_at, message_id, answer_id, attempt, last_event, cancel_requested,"
    " finish_reason, usage, error"
)


def _error(code: str, message: str, *, retryable: bool = True) -> TurnError:
    return {
        "code": code,
        "message": message,
        "retryable": retryable,
        "retry_after_s": 1.0 if retryable else None,
    }


_RUNNER_LOST = _error("RunnerLost", "the process that was answering was lost")
_NOT_RUN = _error("NotRun", "nothing that could answer was there for too long")
_QUESTION_GONE = _error(
    "InvalidArgument", "the message that was to be answered again, or replaced, has gone", retryable=False
)


def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE turn (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL,"
        " message TEXT, replaces INTEGER, model TEXT NOT NULL, request TEXT NOT NULL, key TEXT UNIQUE,"
        " fingerprint BLOB NOT NULL, limits TEXT NOT NULL,"
        " runner TEXT, attempt INTEGER NOT NULL DEFAULT 0, last_event INTEGER NOT NULL DEFAULT 0,"
        " chars INTEGER NOT NULL DEFAULT 0, offers INTEGER NOT NULL DEFAULT 0,"
        " due_at REAL, cancel_requested INTEGER NOT NULL DEFAULT 0, rolled_back INTEGER NOT NULL DEFAULT 0,"
        " message_id INTEGER, answer_id INTEGER, finish_reason TEXT, usage TEXT, error TEXT, created_at REAL NOT NULL,"
        " started_at REAL, ended_at REAL)"
    )
    # Where the next thing to be done for a turn is found; most have nothing left.
    database.execute("CREATE INDEX turn_due_at ON turn (due_at) WHERE due_at IS NOT NULL")
    database.execute("CREATE INDEX turn_open ON turn (number) WHERE ended_at IS NULL")
    database.execute(
        "CREATE TABLE turn_event (turn TEXT NOT NULL, number INTEGER NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL,"
        " PRIMARY KEY (turn, number)) WITHOUT ROWID"
    )
    # Of which turn a message is, and which turn it has given way to: it is hidden while that one runs.
    database.execute("ALTER TABLE message ADD COLUMN turn TEXT")
    database.execute("ALTER TABLE message ADD COLUMN replaced_by TEXT")
    database.execute("CREATE INDEX message_replaced ON message (replaced_by) WHERE replaced_by IS NOT NULL")
    database.execute("ALTER TABLE session ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0")
    database.execute("ALTER TABLE session ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0")


class TurnLedger:
    """The turns of one session.

    Args:
        outbox: where what a turn has used goes.
        told: called when a turn has a new event.
        moved: called when it may be another's turn, or one is to stop.
        plan: called when something is to be done for a turn at a time that may come before all others.
    """

    def __init__(
        self,
        object_id: ObjectId,
        storage: Storage,
        clock: Clock,
        *,
        outbox: UsageOutbox,
        told: Callable[[], None],
        moved: Callable[[], None],
        plan: Callable[[], None],
    ) -> None:
        self._id = object_id
        self._storage = storage
        self._sql = storage.sql
        self._clock = clock
        self._outbox = outbox
        self._told = told
        self._moved = moved
        self._plan = plan

    # -- beginning

    def begin(self, new: NewTurn) -> tuple[TurnInfo, bool]:
        """Enters a turn, or finds the one that the same request has begun. Returns whether it was found.

        Raises:
            RequestReused: the key came with another request.
            ObjectConflict: an answer is under way, and the new message may not wait for it, or too many do.
            InvalidArgument: there is no message of the user to be answered again, or to be replaced.
        """
        key, limits = new["key"], new["limits"]
        digest = fingerprint("turn", (new["message"], new["replace"], new["request"]), {})
        for known_id, known_digest in self._sql(
            "SELECT id, fingerprint FROM turn WHERE id = ? OR key = ? ORDER BY id = ? DESC",
            new["turn_id"],
            key,
            new["turn_id"],
        ):
            if known_digest != digest:
                raise RequestReused(str(self._id), key or new["turn_id"])
            return self.info(known_id), True
        self._require_answerable(new)
        active = self._sql("SELECT id, status FROM turn WHERE ended_at IS NULL ORDER BY number")
        if active:
            self._make_way(active, new)
        now = self._clock.now()
        self._forget_old(now)
        self._sql(
            "INSERT INTO turn"
            " (id, status, message, replaces, model, request, key, fingerprint, limits, created_at, due_at)"
            " VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            new["turn_id"],
            new["message"],
            new["replace"],
            new["model"],
            json.dumps(new["request"]),
            key,
            digest,
            json.dumps(limits),
            now,
            now + LEASE_S,
        )
        waiting = self._open_count() - 1
        if waiting:
            self._add(new["turn_id"], "turn.queued", {**self._names(new["turn_id"]), "position": waiting})
        self._plan()
        return self.info(new["turn_id"]), False

    def _require_answerable(self, new: NewTurn) -> None:
        if new["message"] is None and new["replace"] is None and not self._last_question():
            raise InvalidArgument("message", None, "is required: no message was asked before that could be again")
        if new["replace"] is not None and not self._sql(
            # One that has given way to a turn that runs may come back before this one's time does.
            "SELECT 1 FROM message WHERE id = ? AND role = 'user'",
            new["replace"],
        ):
            raise InvalidArgument(
                "replace", new["replace"], "must be the id of a message of the user that is in this session"
            )

    def _last_question(self) -> tuple[int, str] | None:
        rows = self._sql(
            "SELECT id, content FROM message WHERE role = 'user' AND replaced_by IS NULL ORDER BY id DESC LIMIT 1"
        )
        return cast("tuple[int, str]", rows[0]) if rows else None

    def _question(self, message_id: int) -> tuple[int, str] | None:
        rows = self._sql(
            "SELECT id, content FROM message WHERE id = ? AND role = 'user' AND replaced_by IS NULL", message_id
        )
        return cast("tuple[int, str]", rows[0]) if rows else None

    def _make_way(self, active: list[tuple[Any, ...]], new: NewTurn) -> None:
        match new["on_conflict"]:
            case "reject":
                raise ObjectConflict(str(self._id), "an answer is under way")
            case "enqueue":
                if sum(status == "queued" for _, status in active) >= new["limits"]["queue_max"]:
                    raise ObjectConflict(str(self._id), "too many messages wait for an answer")
            case "interrupt" | "rollback" as how:
                for turn_id, _ in active:
                    if how == "rollback":
                        self._roll_back(turn_id)
                    else:
                        self.cancel(turn_id)

    def _roll_back(self, turn_id: str) -> None:
        """Has the turn end and leave nothing in the history."""
        self._sql("UPDATE turn SET rolled_back = 1 WHERE id = ?", turn_id)
        self.cancel(turn_id)

    def _forget_old(self, now: float) -> None:
        self._sql(
            "DELETE FROM turn WHERE ended_at < ? AND due_at IS NULL"
            " AND number < (SELECT seq FROM sqlite_sequence WHERE name = 'turn') - ?",
            now - ENDED_KEPT_S,
            ENDED_KEPT_MIN,
        )

    # -- running

    def claim(self, turn_id: str, runner: str) -> Claim | None:
        """Hands the turn to a runner if it is its turn; one that holds it gets it again.

        Raises:
            ObjectNotFound: there is no such turn.
        """
        row = self._row(turn_id, "status, runner, attempt")
        status, holder, attempt = row
        if status == "in_progress" and holder == runner:
            return self._claim(turn_id)
        if status != "queued":
            return None
        now = self._clock.now()
        if not self._is_first(turn_id):
            # Somebody is there to run it when its time comes.
            self._sql("UPDATE turn SET due_at = ? WHERE id = ?", now + LEASE_S, turn_id)
            return None
        if attempt == 0 and not self._take_in(turn_id, now):
            return None
        self._sql(
            "UPDATE turn SET status = 'in_progress', runner = ?, attempt = attempt + 1, offers = 0, due_at = ?,"
            " started_at = ifnull(started_at, ?) WHERE id = ?",
            runner,
            now + LEASE_S,
            now,
            turn_id,
        )
        self._plan()
        return self._claim(turn_id)

    def _take_in(self, turn_id: str, now: float) -> bool:
        """Puts the question into the history. False: it was to replace one that has gone meanwhile, and has failed."""
        message, replaces, result_of = self._row(turn_id, "message, replaces, json_extract(request, '$.result_of')")
        if message is None or replaces is not None:
            replaced = self._last_question() if replaces is None else self._question(replaces)
            if replaced is None:
                self.end(turn_id, "failed", error=_QUESTION_GONE)
                return False
            replaces = replaced[0]
            self._sql("UPDATE message SET replaced_by = ? WHERE id >= ? AND replaced_by IS NULL", turn_id, replaces)
            message = replaced[1] if message is None else message
        role = "user"
        data: dict[str, Any] = {"turn_id": turn_id}
        if result_of is not None:
            call = json.loads(result_of)
            role = "tool"
            data |= {"tool_call_id": call["id"], "name": call["name"], FOR_CLIENT: True}
        message_id = self._insert_message(turn_id, role, message, None, data, now)
        # The message itself may leave while the turn runs, when there are too many.
        self._sql(
            "UPDATE turn SET message_id = ?, message = ?, replaces = ? WHERE id = ?",
            message_id,
            message,
            replaces,
            turn_id,
        )
        self.count_messages(now)
        return True

    def _claim(self, turn_id: str) -> Claim:
        attempt, last_event, message_id, message, request, is_created = self._row(
            turn_id,
            "attempt, last_event, message_id, message, request,"
            " EXISTS (SELECT 1 FROM turn_event WHERE turn = id AND type = 'turn.created')",
        )
        rows = self._sql(
            "SELECT id, role, content, tokens, data, created_at FROM message WHERE id < ?1 AND replaced_by IS NULL"
            # What a client's tools gave is answered with all since the user's last message, however much that is.
            " ORDER BY id DESC LIMIT max(?2, (SELECT count(*) FROM message WHERE id < ?1 AND replaced_by IS NULL"
            " AND id >= (SELECT max(id) FROM message WHERE id <= ?1 AND role = 'user' AND replaced_by IS NULL)))",
            message_id,
            HISTORY_MESSAGES_MAX,
        )
        return {
            "turn_id": turn_id,
            "attempt": attempt,
            "last_event": last_event,
            "is_created": bool(is_created),
            "message_id": message_id,
            "message": message,
            "request": json.loads(request),
            "history": [message_of(row) for row in reversed(rows)],
        }

    def is_claimable(self, turn_id: str) -> bool:
        """Nobody is before the turn, or it needs nobody any more."""
        (status,) = self._row(turn_id, "status")
        return status != "queued" or self._is_first(turn_id)

    def goes_on(self, turn_id: str, attempt: int) -> bool:
        """The turn is the claim's to run, and not to be stopped."""
        return self._row(turn_id, "status, attempt, cancel_requested") == ("in_progress", attempt, 0)

    def renew(self, turn_id: str, attempt: int) -> None:
        """Keeps a claim from lapsing, unless the turn is to stop: a runner that does not is not waited for."""
        self._sql(
            "UPDATE turn SET due_at = ?"
            " WHERE id = ? AND status = 'in_progress' AND attempt = ? AND cancel_requested = 0",
            self._clock.now() + LEASE_S,
            turn_id,
            attempt,
        )

    def record(self, turn_id: str, attempt: int, after: int, events: Sequence[NewEvent]) -> bool:
        """Writes down what happened after event `after`; what is there already is left. False: it is to stop.

        Raises:
            InvalidArgument: something is missing before the events, or they are none that a runner tells.
        """
        status, current, last_event, chars, cancel_requested = self._row(
            turn_id, "status, attempt, last_event, chars, cancel_requested"
        )
        if status != "in_progress" or current != attempt or chars > TURN_CHARS_MAX:
            return False
        chars += self._append(turn_id, after, last_event, events)
        return not cancel_requested and chars <= TURN_CHARS_MAX

    def _append(self, turn_id: str, after: int, last_event: int, events: Sequence[NewEvent]) -> int:
        """Returns how many characters the new ones have."""
        if not 0 <= after <= last_event:
            raise InvalidArgument("after", after, f"must be from 0 to {last_event}, the number of the last event")
        new = events[last_event - after :]
        for event in new:
            require_recordable(event)
        rows = [
            (turn_id, number, event["type"], json.dumps(event["data"]))
            for number, event in enumerate(new, start=last_event + 1)
        ]
        chars = sum(len(row[3]) for row in rows)
        self._storage.sql_many("INSERT INTO turn_event (turn, number, type, data) VALUES (?, ?, ?, ?)", rows)
        self._sql(
            "UPDATE turn SET last_event = ?, chars = chars + ?,"
            " due_at = CASE cancel_requested WHEN 0 THEN ? ELSE due_at END WHERE id = ?",
            last_event + len(new),
            chars,
            self._clock.now() + LEASE_S,
            turn_id,
        )
        if new:
            self._told()
        return chars

    # -- ending

    def finish(
        self,
        turn_id: str,
        attempt: int,
        after: int,
        events: Sequence[NewEvent],
        status: FinalStatus,
        *,
        finish_reason: str | None,
        usage: Usage | None,
        error: TurnError | None,
    ) -> TurnInfo:
        """Writes down the last events and ends the turn, if it is still the runner's to end.

        Raises:
            InvalidArgument: as `record`.
        """
        current, holder, last_event, chars, cancel_requested = self._row(
            turn_id, "status, attempt, last_event, chars, cancel_requested"
        )
        if current == "in_progress" and holder == attempt:
            self._append(turn_id, after, last_event, events)
            if status == "cancelled" and not cancel_requested and chars > TURN_CHARS_MAX:
                status, finish_reason = "incomplete", "length"  # it was this ledger that had it stopped
            self.end(turn_id, status, finish_reason=finish_reason, usage=usage, error=error)
        return self.info(turn_id)

    def cancel(self, turn_id: str) -> TurnInfo:
        """Ends a turn that waits; has the runner of one that runs end it."""
        (status,) = self._row(turn_id, "status")
        if status == "queued":
            self.end(turn_id, "cancelled")
        elif status == "in_progress":
            self._sql("UPDATE turn SET cancel_requested = 1 WHERE id = ?", turn_id)
            self._moved()
        return self.info(turn_id)

    def end(
        self,
        turn_id: str,
        status: FinalStatus,
        *,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        error: TurnError | None = None,
    ) -> None:
        """The turn's messages, usage, last event and state, at once."""
        now = self._clock.now()
        message_id, rolled_back, model, limits = self._row(turn_id, "message_id, rolled_back, model, limits")
        if rolled_back:
            # It may have come to its end just before it was told.
            status, finish_reason, error = "cancelled", None, None
        elif status == "failed":
            error = error or _RUNNER_LOST
        answer_id: int | None = None
        if not rolled_back and status != "failed":
            answer_id = self._store_answer(turn_id, status, finish_reason or status, usage, now)
        self._settle_replaced(turn_id, kept=answer_id is not None, rolled_back=bool(rolled_back))
        if usage:
            asked, answered = usage["input_tokens"], usage["output_tokens"]
            self._sql(
                "UPDATE session SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?", asked, answered
            )
            self._outbox.put(Used(turn_id, now, model, asked, answered))
        if message_id is not None:
            self.count_messages(now)
        self._add(turn_id, FINAL_EVENT[status], self._ending(turn_id, status, answer_id, finish_reason, usage, error))
        kept: dict[str, float] = json.loads(limits)
        kept_s = kept["events_kept_s" if status in ("completed", "cancelled") else "broken_events_kept_s"]
        # What was asked is in the history, or shall not be; how it was is for whoever asks of the turn.
        self._sql(
            "UPDATE turn SET status = ?, ended_at = ?, runner = NULL, answer_id = ?, finish_reason = ?, usage = ?,"
            " error = ?, due_at = ?, message = NULL,"
            " request = CASE WHEN rolled_back THEN '{}' ELSE request END WHERE id = ?",
            status,
            now,
            answer_id,
            finish_reason,
            json.dumps(usage) if usage else None,
            json.dumps(error) if error else None,
            now + kept_s,
            turn_id,
        )
        # The next one's runner has until then to take it.
        self._sql(
            "UPDATE turn SET due_at = ? WHERE number ="
            " (SELECT min(number) FROM turn WHERE ended_at IS NULL AND status = 'queued')",
            now + LEASE_S,
        )
        self._plan()
        self._moved()

    def _store_answer(
        self, turn_id: str, status: str, finish_reason: str, usage: Usage | None, now: float
    ) -> int | None:
        told: list[tuple[str, dict[str, Any]]] = []
        sources: list[Any] | None = None
        for event_type, data in self._sql("SELECT type, data FROM turn_event WHERE turn = ? ORDER BY number", turn_id):
            if event_type in CONTENT:
                told.append((event_type, json.loads(data)))
            elif event_type == "sources":
                sources = json.loads(data)["sources"]
            elif event_type == "turn.retrying":
                sources = None  # of an attempt that came to nothing
        drafts = drafts_of(told)
        if status == "completed" and not ends_as_answer(drafts):
            # A model may have nothing to say; a question that was answered has an answer.
            drafts.append(Draft("assistant", "", {}))
        closing: dict[str, Any] = {} if sources is None else {"sources": sources}
        closing |= {"finish_reason": finish_reason} | ({"usage": usage} if usage else {})
        answer_id = None
        # What was broken off while tools ran ends with their results; the answer is what called them.
        last = max((number for number, draft in enumerate(drafts) if draft.role == "assistant"), default=None)
        for number, draft in enumerate(drafts):
            is_answer = number == last
            tokens = usage["output_tokens"] if is_answer and usage else None
            data = {"turn_id": turn_id, **draft.data} | (closing if is_answer else {})
            message_id = self._insert_message(turn_id, draft.role, draft.content, tokens, data, now)
            answer_id = message_id if is_answer else answer_id
        return answer_id

    def _settle_replaced(self, turn_id: str, *, kept: bool, rolled_back: bool) -> None:
        """What gave way to the turn goes, or, where nothing came of the turn, comes back in its place."""
        (replaces,) = self._row(turn_id, "replaces")
        if kept:
            self._sql("DELETE FROM message WHERE replaced_by = ?", turn_id)
            return
        if rolled_back or replaces is not None:
            self._sql("DELETE FROM message WHERE turn = ?", turn_id)
        self._sql("UPDATE message SET replaced_by = NULL WHERE replaced_by = ?", turn_id)

    def _ending(
        self,
        turn_id: str,
        status: FinalStatus,
        answer_id: int | None,
        finish_reason: str | None,
        usage: Usage | None,
        error: TurnError | None,
    ) -> dict[str, Any]:
        names = self._names(turn_id)
        if status == "failed":
            return {**names, **(error or {}), "usage": usage}
        told: dict[str, Any] = {**names, "message_id": answer_id, "usage": usage}
        if status == "completed":
            told["finish_reason"] = finish_reason
        elif status == "incomplete":
            told |= {"reason": finish_reason or "broken_off", "error": error}
        return told

    # -- looking

    def info(self, turn_id: str) -> TurnInfo:
        """
        Raises:
            ObjectNotFound: there is no such turn.
        """
        return _info(self._row(turn_id, _COLUMNS))

    def asked_as(self, key: str) -> int | None:
        """The newest message of the user that was asked with a key that is `key`, or begins with it and a `-`."""
        rows = self._sql(
            "SELECT message.id FROM turn JOIN message ON message.id = turn.message_id"
            # `.` is what comes next after `-`.
            " WHERE (key = ?1 OR key > ?1 || '-' AND key < ?1 || '.') AND replaced_by IS NULL"
            " ORDER BY number DESC LIMIT 1",
            key,
        )
        return int(rows[0][0]) if rows else None

    def page(self, limit: int, before: str | None) -> tuple[list[TurnInfo], bool]:
        """Turns, newest first, and whether there are older ones."""
        limit = max(1, min(limit, TURN_PAGE_MAX))
        (number,) = (2**62,) if before is None else self._row(before, "number")
        rows = self._sql(
            f"SELECT {_COLUMNS} FROM turn WHERE number < ? ORDER BY number DESC LIMIT ?",  # noqa: S608  a constant
            number,
            limit + 1,
        )
        return [_info(row) for row in rows[:limit]], len(rows) > limit

    def events(self, turn_id: str, after: int) -> EventPage:
        """What was written down of a turn. Of one whose events are no longer kept, nothing."""
        status, last_event = self._row(turn_id, "status, last_event")
        events: list[TurnEvent] = []
        chars = 0
        for number, event_type, data in self._sql(
            "SELECT number, type, data FROM turn_event WHERE turn = ? AND number > ? ORDER BY number LIMIT ?",
            turn_id,
            after,
            EVENT_PAGE_MAX,
        ):
            chars += len(data)
            if events and chars > EVENT_PAGE_CHARS_MAX:
                break
            events.append({"number": number, "type": event_type, "data": json.loads(data)})
        read_to = events[-1]["number"] if events else after
        is_over = status in FINAL and (not events or read_to >= last_event)
        return {"events": events, "is_over": is_over}

    def has_news(self, turn_id: str, after: int) -> bool:
        """There are events behind `after`, or will be none."""
        status, last_event = self._row(turn_id, "status, last_event")
        return status in FINAL or last_event > after

    def request(self, turn_id: str) -> dict[str, Any]:
        """What was asked of whoever runs the turn."""
        (request,) = self._row(turn_id, "request")
        return cast("dict[str, Any]", json.loads(request))

    def disown(self, turn_id: str) -> int:
        """Forgets the `client` part of a turn's request. Returns how many other turns have one."""
        self._row(turn_id, "id")
        self._sql("UPDATE turn SET request = json_remove(request, '$.client') WHERE id = ?", turn_id)
        ((others,),) = self._sql("SELECT count(*) FROM turn WHERE json_extract(request, '$.client') IS NOT NULL")
        return int(others)

    # -- what is due

    def next_due_at(self) -> float | None:
        ((due_at,),) = self._sql("SELECT min(due_at) FROM turn WHERE due_at IS NOT NULL")
        return cast("float | None", due_at)

    def next_due(self) -> tuple[str, str] | None:
        """A turn for which something is to be done now, with its state."""
        rows = self._sql("SELECT id, status FROM turn WHERE due_at <= ? ORDER BY due_at LIMIT 1", self._clock.now())
        return cast("tuple[str, str]", rows[0]) if rows else None

    def look_after(self, turn_id: str, status: str) -> bool:
        """Does what is due for a turn. Returns whether it is to be offered to runners."""
        if status == "in_progress":
            # Nobody has been heard of who runs it.
            (attempt,) = self._row(turn_id, "attempt")
            return self._start_over(turn_id, attempt, "runner_lost", _RUNNER_LOST)
        if status == "queued":
            return self._offer(turn_id)
        # It has ended, and its events were kept for as long as its tenant wants.
        self._sql("DELETE FROM turn_event WHERE turn = ?", turn_id)
        self._sql("UPDATE turn SET due_at = NULL WHERE id = ?", turn_id)
        return False

    def release(self, turn_id: str, attempt: int, reason: str) -> bool:
        """Has a turn of whose answer nothing was told run from the start. False: it is not the caller's."""
        if self._row(turn_id, "status, attempt") != ("in_progress", attempt):
            return False
        self._start_over(turn_id, attempt, reason, _error(reason, "the answer could not be begun"))
        return True

    def _start_over(self, turn_id: str, attempt: int, reason: str, error: TurnError) -> bool:
        """Has a turn that lost its runner wait for another; ends it where that may not be. Returns whether it waits."""
        cancel_requested, limits, has_content = self._row(
            turn_id,
            "cancel_requested, limits, EXISTS (SELECT 1 FROM turn_event WHERE turn = id"
            " AND type IN ('text.delta', 'tool.call', 'tool.result'))",
        )
        if cancel_requested:
            self.end(turn_id, "cancelled")
        elif has_content:
            # Who has read it can't unread it.
            self.end(turn_id, "incomplete", finish_reason=reason, error=error)
        elif attempt >= json.loads(limits)["attempts_max"]:
            self.end(turn_id, "failed", error=error)
        else:
            self._add(turn_id, "turn.retrying", {"attempt": attempt + 1, "reason": reason})
            self._sql(
                "UPDATE turn SET status = 'queued', runner = NULL, due_at = ? WHERE id = ?",
                # Who gave it back may claim it again until then.
                self._clock.now() + LEASE_S,
                turn_id,
            )
            self._moved()
            return True
        return False

    def _offer(self, turn_id: str) -> bool:
        """A turn waits and nobody asks for it. Returns whether it is to be offered; then it has time to be claimed."""
        if not self._is_first(turn_id):
            # Its time comes when the one before it ends.
            self._sql("UPDATE turn SET due_at = NULL WHERE id = ?", turn_id)
            return False
        (offers,) = self._row(turn_id, "offers")
        if offers >= OFFERS_MAX:
            self.end(turn_id, "failed", error=_NOT_RUN)
            return False
        self._sql("UPDATE turn SET offers = offers + 1, due_at = ? WHERE id = ?", self._clock.now() + LEASE_S, turn_id)
        return True

    # -- forgetting

    def clear(self) -> None:
        """Removes all that was said. Turns that have not ended end, and leave nothing."""
        # Not of those that are ended here: their readers are to hear of it, also when this is repeated.
        self._sql(
            "DELETE FROM turn_event WHERE turn IN (SELECT id FROM turn WHERE ended_at IS NOT NULL AND rolled_back = 0)"
        )
        self._sql("UPDATE turn SET request = '{}' WHERE ended_at IS NOT NULL")
        self._sql("DELETE FROM message")
        self._sql("UPDATE session SET message_count = 0")
        for (turn_id,) in self._sql("SELECT id FROM turn WHERE ended_at IS NULL"):
            self._roll_back(turn_id)

    def forget(self) -> None:
        """The session begins anew."""
        self._sql("DELETE FROM turn")
        self._sql("DELETE FROM turn_event")
        self._told()
        self._moved()

    # -- inside

    def _row(self, turn_id: str, columns: str) -> tuple[Any, ...]:
        rows = self._sql(f"SELECT {columns} FROM turn WHERE id = ?", turn_id)  # noqa: S608  constants of this file
        if not rows:
            raise ObjectNotFound(f"{self._id}/{turn_id}")
        return rows[0]

    def _is_first(self, turn_id: str) -> bool:
        return self._sql("SELECT id FROM turn WHERE ended_at IS NULL ORDER BY number LIMIT 1") == [(turn_id,)]

    def _open_count(self) -> int:
        ((count,),) = self._sql("SELECT count(*) FROM turn WHERE ended_at IS NULL")
        return int(count)

    def _names(self, turn_id: str) -> dict[str, Any]:
        return {"turn_id": turn_id, "session_id": self._id.name}

    def _add(self, turn_id: str, event_type: EventType, data: dict[str, Any]) -> None:
        ((number,),) = self._sql(
            "UPDATE turn SET last_event = last_event + 1 WHERE id = ? RETURNING last_event", turn_id
        )
        self._sql("INSERT INTO turn_event VALUES (?, ?, ?, ?)", turn_id, number, event_type, json.dumps(data))
        self._told()

    def _insert_message(
        self, turn_id: str, role: str, content: str, tokens: int | None, data: dict[str, Any], now: float
    ) -> int:
        ((message_id,),) = self._sql(
            "INSERT INTO message (role, content, tokens, data, created_at, turn) VALUES (?, ?, ?, ?, ?, ?)"
            " RETURNING id",
            role,
            content,
            tokens,
            json.dumps(data),
            now,
            turn_id,
        )
        return int(message_id)

    def count_messages(self, now: float) -> None:
        """Has the session's row agree with its messages, of which the oldest leave where there are too many."""
        # Both are counted without looking into messages, which may be long.
        ((count, messages_max),) = self._sql(
            "SELECT (SELECT count(*) FROM message) - (SELECT count(*) FROM message WHERE replaced_by IS NOT NULL),"
            " messages_max FROM session"
        )
        if count > messages_max:
            self._sql(
                "DELETE FROM message WHERE id IN"
                " (SELECT id FROM message WHERE replaced_by IS NULL ORDER BY id LIMIT ?)",
                count - messages_max,
            )
        self._sql("UPDATE session SET last_active_at = ?, message_count = ?", now, min(count, messages_max))


def message_of(row: Iterable[Any]) -> Message:
    message_id, role, content, tokens, data, created_at = row
    return {
        "id": message_id,
        "role": role,
        "content": content,
        "tokens": tokens,
        "data": None if data is None else json.loads(data),
        "created_at": created_at,
    }


def _info(row: tuple[Any, ...]) -> TurnInfo:
    values = dict(zip(_COLUMNS.replace(",", "").split(), row, strict=True))
    values["cancel_requested"] = bool(values["cancel_requested"])
    for name in ("usage", "error"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return cast("TurnInfo", values)

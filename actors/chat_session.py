"""What was said in one conversation?

A session is made by `create`; until then, and after `delete` or expiry, every method raises `ObjectNotFound`. Messages
are numbered from 1 in the order in which they were acknowledged; of more than `messages_max` the oldest leave.

A session with a time to live ends by itself when it was not used for so long, and its entry in the directory with it.

Questions are answered in turns, which `TurnLedger` keeps; this class lets callers in, and wakes those who wait.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NotRequired

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors import session_copy, turn_ledger, usage_outbox
from actors.directory import DIRECTORY_NAME, Directory, SessionMetadata
from actors.message import Message
from actors.news import News
from actors.runtime import (
    AlarmInfo,
    DurableError,
    DurableObject,
    InvalidArgument,
    ObjectNotFound,
    ObjectOverloaded,
    exactly_once,
    idempotent,
    interleaved,
    read,
)
from actors.session_copy import CopyProgress, Origin, SessionCopy
from actors.token_usage import USAGE_NAME, TokenUsage
from actors.turn import Begun, Claiming, EventPage, FinalStatus, NewEvent, NewTurn, TurnError, TurnInfo, Usage
from actors.turn_ledger import LEASE_S, TurnLedger, message_of
from actors.turn_queue import QUEUE_NAME, QUEUE_TENANT, TurnQueue
from actors.usage_outbox import AGAIN_AFTER_S, UsageOutbox

MESSAGES_MAX_DEFAULT = 1000
HISTORY_PAGE_MAX = 1000
#: A page of a transcript ends with the message that makes it longer than this.
TRANSCRIPT_PAGE_CHARS = 1_000_000
TRANSCRIPT_PAGE_MAX = 200
#: How long a caller may have the session wait for something to happen.
WAIT_MAX_S = 20.0
#: How long a runner may wait with one renewal of its claim: it renews it three times before it lapses.
ATTEND_MAX_S = LEASE_S / 3
#: Turns that one alarm looks after; the next one comes at once.
LOOKED_AFTER_MAX = 100

migrations = Migrations("chat_session")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE session (only INTEGER PRIMARY KEY CHECK (only = 1), user_id TEXT, title TEXT,"
        " metadata TEXT NOT NULL, created_at REAL NOT NULL, last_active_at REAL NOT NULL, ttl_s REAL,"
        " messages_max INTEGER NOT NULL, message_count INTEGER NOT NULL DEFAULT 0)"
    )
    # AUTOINCREMENT: the number of a message that left is never given again.
    database.execute(
        "CREATE TABLE message (id INTEGER PRIMARY KEY AUTOINCREMENT, role TEXT NOT NULL, content TEXT NOT NULL,"
        " tokens INTEGER, data TEXT, created_at REAL NOT NULL)"
    )


@migrations()
def create_turns(database: Database) -> None:
    turn_ledger.create_tables(database)
    usage_outbox.create_tables(database)


@migrations()
def create_copying(database: Database) -> None:
    session_copy.create_column(database)


@migrations()
def index_turns_of_messages(database: Database) -> None:
    database.execute("CREATE INDEX message_turn ON message (turn) WHERE turn IS NOT NULL")


class Shown(TypedDict):
    """What the session's listing shows now."""

    message_count: int
    last_active_at: float
    expires_at: float | None


class Appended(Shown):
    """The number that a message got."""

    id: int
    created_at: float


class History(TypedDict):
    """A page of messages, oldest first. `has_more` says that there are older ones."""

    messages: list[Message]
    has_more: bool


class Transcript(TypedDict):
    """A page of messages, oldest first. `has_more` says that there are newer ones."""

    messages: list[Message]
    has_more: bool


class NewMessage(TypedDict):
    """A message that has no number yet."""

    role: str
    content: str
    data: NotRequired[dict[str, Any]]


class Extended(Shown):
    """The messages that were added."""

    messages: list[Message]


class TurnPage(TypedDict):
    """Turns, newest first. `has_more` says that there are older ones."""

    turns: list[TurnInfo]
    has_more: bool


class SessionUsage(TypedDict):
    """Tokens of all turns of a session."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class AnsweredTurn(TypedDict):
    """A turn with what was asked of whoever runs it, and its messages: what led to it, the question, the answer."""

    turn: TurnInfo
    request: dict[str, Any]
    messages: list[Message]


class Ended(Shown):
    """A turn as it is now."""

    turn: TurnInfo


class ChatSession(DurableObject):
    migrations = migrations

    def start(self) -> None:
        #: Of events, and of what has runners begin and stop: most events concern no runner that waits.
        self._events, self._moves = News(), News()
        self._is_gone = False
        self._outbox = UsageOutbox(self.storage)
        self._turns = TurnLedger(
            self.id,
            self.storage,
            self.clock,
            outbox=self._outbox,
            told=self._events.tell,
            moved=self._moves.tell,
            plan=self._plan,
        )
        self._copy = SessionCopy(self.id, self.storage, self.clock)

    @idempotent
    def create(
        self,
        *,
        user_id: str | None = None,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        ttl_s: float | None = None,
        messages_max: int = MESSAGES_MAX_DEFAULT,
    ) -> SessionMetadata:
        """Makes the session; one that exists is left as it is and returned, and one that expired gives way.

        Raises:
            InvalidArgument: the time to live or the number of messages is not above 0.
        """
        if ttl_s is not None and not 0 < ttl_s < math.inf:
            raise InvalidArgument("ttl_s", ttl_s, "must be a number of seconds above 0")
        if messages_max < 1:
            raise InvalidArgument("messages_max", messages_max, "must be at least 1")
        rows = self.storage.sql("SELECT last_active_at, ttl_s FROM session")
        if rows and self._is_over(*rows[0]):
            # Not `delete_all`: that would take what is written below along.
            self.storage.sql("DELETE FROM message")
            self.storage.sql("DELETE FROM session")
            self._turns.forget()
        now = self.clock.now()
        self.storage.sql(
            "INSERT INTO session (only, user_id, title, metadata, created_at, last_active_at, ttl_s, messages_max)"
            " VALUES (1, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            user_id,
            title,
            json.dumps(metadata or {}),
            now,
            now,
            ttl_s,
            messages_max,
        )
        created = self.metadata()
        self._plan()
        return created

    @read
    def metadata(self) -> SessionMetadata:
        user_id, title, metadata, created_at, last_active_at, ttl_s, _, message_count = self._session()
        return {
            "id": self.id.name,
            "tenant": self.id.tenant,
            "user_id": user_id,
            "title": title,
            "metadata": json.loads(metadata),
            "created_at": created_at,
            "last_active_at": last_active_at,
            "expires_at": _expires_at(last_active_at, ttl_s),
            "message_count": message_count,
        }

    @idempotent
    def update(self, changes: dict[str, Any]) -> SessionMetadata:
        """Changes `title` and `metadata` where `changes` names them; None clears."""
        self._session()
        if "title" in changes:
            self.storage.sql("UPDATE session SET title = ?", changes["title"])
        if "metadata" in changes:
            self.storage.sql("UPDATE session SET metadata = ?", json.dumps(changes["metadata"] or {}))
        return self.metadata()

    @exactly_once
    def append(
        self, role: str, content: str, *, tokens: int | None = None, data: dict[str, Any] | None = None
    ) -> Appended:
        """Adds one message; the oldest leave where there are too many."""
        _, _, _, _, _, ttl_s, messages_max, message_count = self._session()
        now = self.clock.now()
        ((message_id,),) = self.storage.sql(
            "INSERT INTO message (role, content, tokens, data, created_at) VALUES (?, ?, ?, ?, ?) RETURNING id",
            role,
            content,
            tokens,
            None if data is None else json.dumps(data),
            now,
        )
        message_count += 1
        if message_count > messages_max:
            # Not by number alone: a cleared session starts at a high one. Those that gave way to a turn don't count.
            surplus = message_count - messages_max
            self.storage.sql(
                "DELETE FROM message WHERE id IN"
                " (SELECT id FROM message WHERE replaced_by IS NULL ORDER BY id LIMIT ?)",
                surplus,
            )
            message_count = messages_max
        self.storage.sql("UPDATE session SET last_active_at = ?, message_count = ?", now, message_count)
        expires_at = _expires_at(now, ttl_s)
        self._plan()
        return {
            "id": message_id,
            "created_at": now,
            "message_count": message_count,
            "last_active_at": now,
            "expires_at": expires_at,
        }

    @exactly_once
    def extend(self, messages: Sequence[NewMessage], turn_id: str | None = None) -> Extended:
        """Adds messages, all or none. They are a turn's where they lead to its question."""
        self._session()
        now = self.clock.now()
        of_turn = {} if turn_id is None else {"turn_id": turn_id}
        added = [
            message_of(
                self.storage.sql(
                    "INSERT INTO message (role, content, data, created_at, turn) VALUES (?, ?, ?, ?, ?)"
                    " RETURNING id, role, content, tokens, data, created_at",
                    message["role"],
                    message["content"],
                    json.dumps(data) if (data := {**of_turn, **message.get("data", {})}) else None,
                    now,
                    turn_id,
                )[0]
            )
            for message in messages
        ]
        self._turns.count_messages(now)
        self._plan()
        return {"messages": added, **self._shown()}

    @idempotent
    def remove(self, message_id: int) -> Shown:
        """Removes one message, and with an answer that called tools their results. One that has gone stays away."""
        self._session()
        rows = self.storage.sql("SELECT data FROM message WHERE id = ?", message_id)
        if rows:
            data = json.loads(rows[0][0] or "{}")
            self.storage.sql("DELETE FROM message WHERE id = ?", message_id)
            for call in data.get("tool_calls", ()):
                # They stand right behind it; those of a client's tools are of another turn.
                self.storage.sql(
                    "DELETE FROM message WHERE role = 'tool' AND json_extract(data, '$.tool_call_id') = ?1 AND id > ?2"
                    " AND id < ifnull((SELECT min(id) FROM message WHERE id > ?2 AND role <> 'tool'), 1 << 62)",
                    call["id"],
                    message_id,
                )
            self._turns.count_messages(self.clock.now())
        return self._shown()

    @read
    def listed(self, limit: int, after: int | None = None, *, newest_first: bool = False) -> History:
        """Up to `limit` messages behind message `after`, in the order of their numbers or in the other one."""
        self._session()
        limit = max(1, min(limit, HISTORY_PAGE_MAX))
        bound, order = ("<", "DESC") if newest_first else (">", "ASC")
        rows = self.storage.sql(
            "SELECT id, role, content, tokens, data, created_at FROM message"  # noqa: S608  two constants each
            f" WHERE id {bound} ? AND replaced_by IS NULL ORDER BY id {order} LIMIT ?",
            (2**62 if newest_first else 0) if after is None else after,
            limit + 1,
        )
        return {"messages": [message_of(row) for row in rows[:limit]], "has_more": len(rows) > limit}

    @read
    def history(self, limit: int = 50, before: int | None = None) -> History:
        """The newest `limit` messages older than message `before`, oldest first."""
        self._session()
        limit = max(1, min(limit, HISTORY_PAGE_MAX))
        rows = self.storage.sql(
            "SELECT id, role, content, tokens, data, created_at FROM message WHERE id < ? AND replaced_by IS NULL"
            " ORDER BY id DESC LIMIT ?",
            2**62 if before is None else before,
            limit + 1,
        )
        messages = [message_of(row) for row in rows[:limit]]
        messages.reverse()
        return {"messages": messages, "has_more": len(rows) > limit}

    @read
    def transcript(self, after: int = 0, before: int | None = None) -> Transcript:
        """The first messages behind message `after`, oldest first: as many as make a page."""
        self._session()
        rows = self.storage.sql(
            "SELECT id, role, content, tokens, data, created_at FROM message"
            " WHERE id > ? AND id < ? AND replaced_by IS NULL ORDER BY id LIMIT ?",
            after,
            2**62 if before is None else before,
            TRANSCRIPT_PAGE_MAX + 1,
        )
        messages: list[Message] = []
        chars = 0
        for row in rows[:TRANSCRIPT_PAGE_MAX]:
            if chars > TRANSCRIPT_PAGE_CHARS:
                break
            messages.append(message_of(row))
            chars += len(row[2]) + len(row[4] or "")
        return {"messages": messages, "has_more": len(messages) < len(rows)}

    @idempotent
    def clear(self) -> SessionMetadata:
        """Removes all messages and keeps the session. Turns that wait or run end, and leave none."""
        self._session()
        self._turns.clear()
        return self.metadata()

    @idempotent
    async def delete(self) -> bool:
        """Removes the session and its file. False if there was none.

        Raises:
            ObjectOverloaded: what its turns have used could not be counted; it is as it was.
        """
        rows = self.storage.sql("SELECT 1 FROM session")
        if rows and not await self._tell_usage():
            raise ObjectOverloaded(str(self.id), "the tokens that it used can't be counted now", 1.0)
        self._remove()
        return bool(rows)

    # -- copies

    @read
    def origin(self, before: int | None = None) -> Origin:
        """What a copy of the session up to message `before` begins with; of all of it that there is now, if None.

        Raises:
            InvalidArgument: a tool's call would be in the copy without what came of it. It may where a client has run
                it, who may come with another result.
        """
        user_id, title, metadata, _, _, ttl_s, messages_max, _ = self._session()
        if before is not None and self.storage.sql(
            "SELECT 1 FROM message WHERE id = ? AND role = 'tool' AND json_extract(data, '$.for_client') IS NULL",
            before,
        ):
            raise InvalidArgument("before", before, "must not be the result of a tool, which belongs to its call")
        ((newest,),) = self.storage.sql("SELECT ifnull(max(id), 0) FROM message")
        return {
            "session_id": self.id.name,
            "before": newest + 1 if before is None else min(before, newest + 1),
            "user_id": user_id,
            "title": title,
            "metadata": json.loads(metadata),
            "ttl_s": ttl_s,
            "messages_max": messages_max,
        }

    @idempotent
    def begin_copy(self, origin: Origin) -> CopyProgress | None:
        """Begins to be a copy, or says how far it is. None: it is whole."""
        progress = self._copy.begin(origin)
        self._plan()
        return progress

    @idempotent
    def add_copies(self, after: int, messages: Sequence[Message]) -> None:
        """Takes the messages that follow message `after` of the original, numbered anew."""
        self._copy.add(after, messages)

    @idempotent
    def end_copy(self) -> SessionMetadata:
        """The copy is whole."""
        self._copy.end()
        self._plan()
        return self.metadata()

    # -- turns

    @idempotent
    def begin(self, new: NewTurn, runner: str) -> Begun:
        """Enters a turn into the ledger, and hands it to the runner if no other is before it.

        Raises:
            RequestReused, ObjectConflict, InvalidArgument: see `TurnLedger.begin`.
        """
        self._session()
        self._touch()
        turn, joined = self._turns.begin(new)
        claim = None if joined and turn["id"] != new["turn_id"] else self._turns.claim(turn["id"], runner)
        return {"turn": self._turns.info(turn["id"]), "claim": claim, "joined": joined}

    @interleaved
    @idempotent
    async def claim(self, turn_id: str, runner: str, wait_s: float = 0.0) -> Claiming:
        """Hands the turn to the runner, waiting for its time to come. A runner is known by a name used for one turn."""
        self._session()
        claim = self._turns.claim(turn_id, runner)
        if claim is None:
            await self._until(self._moves, lambda: self._turns.is_claimable(turn_id), wait_s)
            claim = self._turns.claim(turn_id, runner)
        return {"turn": self._turns.info(turn_id), "claim": claim}

    @interleaved
    @idempotent
    async def attend(self, turn_id: str, attempt: int, wait_s: float = 0.0) -> bool:
        """Says that the turn's runner lives, and waits for whether it is to stop. True: it may go on.

        Waits no longer than is good for the claim; a runner that lives comes again at once.
        """
        self._session()
        self._touch()
        self._turns.renew(turn_id, attempt)
        wait_s = min(wait_s, ATTEND_MAX_S)
        await self._until(self._moves, lambda: not self._turns.goes_on(turn_id, attempt), wait_s)
        return self._turns.goes_on(turn_id, attempt)

    @idempotent
    def record(self, turn_id: str, attempt: int, after: int, events: Sequence[NewEvent]) -> bool:
        """Writes down what has happened in a turn since event `after`. False: the runner is to stop."""
        if self._session()[5] is not None:
            self._touch()  # a session does not expire under its runner
        return self._turns.record(turn_id, attempt, after, events)

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
    ) -> Ended:
        """Ends a turn: its last events, the answer, its sources and usage are one commit."""
        self._session()
        turn = self._turns.finish(
            turn_id, attempt, after, events, status, finish_reason=finish_reason, usage=usage, error=error
        )
        return self._ended(turn)

    @idempotent
    def release(self, turn_id: str, attempt: int, reason: str) -> bool:
        """Gives a turn back of whose answer nothing was told, to be run from the start by whoever claims it."""
        self._session()
        return self._turns.release(turn_id, attempt, reason)

    @idempotent
    def cancel(self, turn_id: str) -> TurnInfo:
        """Stops a turn. One that has ended stays as it is; one that runs is ended by its runner, who is told now."""
        self._session()
        return self._turns.cancel(turn_id)

    @read
    def turn(self, turn_id: str) -> TurnInfo:
        self._session()
        return self._turns.info(turn_id)

    @read
    def asked_as(self, key: str) -> int | None:
        """The newest message of the user that was asked with a key that is `key`, or begins with it and a `-`."""
        self._session()
        return self._turns.asked_as(key)

    @read
    def turns(self, limit: int = 20, before: str | None = None) -> TurnPage:
        """The newest turns older than turn `before`."""
        self._session()
        found, has_more = self._turns.page(limit, before)
        return {"turns": found, "has_more": has_more}

    @read
    def answered(self, turn_id: str) -> AnsweredTurn:
        self._session()
        rows = self.storage.sql(
            "SELECT id, role, content, tokens, data, created_at FROM message WHERE turn = ? AND replaced_by IS NULL"
            " ORDER BY id",
            turn_id,
        )
        return {
            "turn": self._turns.info(turn_id),
            "request": self._turns.request(turn_id),
            "messages": [message_of(row) for row in rows],
        }

    @idempotent
    def disown(self, turn_id: str) -> int:
        """Forgets the `client` part of a turn's request. Returns how many other turns have one."""
        self._session()
        return self._turns.disown(turn_id)

    @interleaved
    @read
    async def events(self, turn_id: str, after: int = 0, wait_s: float = 0.0) -> EventPage:
        """A turn's events behind `after`; waits for the next one where there is none yet."""
        self._session()
        page = self._turns.events(turn_id, after)
        if not page["events"] and not page["is_over"]:
            await self._until(self._events, lambda: self._turns.has_news(turn_id, after), wait_s)
            page = self._turns.events(turn_id, after)
        return page

    @read
    def usage(self) -> SessionUsage:
        self._session()
        ((asked, answered),) = self.storage.sql("SELECT input_tokens, output_tokens FROM session")
        return {"input_tokens": asked, "output_tokens": answered, "total_tokens": asked + answered}

    def _ended(self, turn: TurnInfo) -> Ended:
        return {"turn": turn, **self._shown()}

    def _shown(self) -> Shown:
        metadata = self.metadata()
        return {
            "message_count": metadata["message_count"],
            "last_active_at": metadata["last_active_at"],
            "expires_at": metadata["expires_at"],
        }

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

    def _remove(self) -> None:
        self.storage.delete_all()
        self._is_gone = True
        self._events.tell()
        self._moves.tell()

    # -- time

    async def alarm(self, info: AlarmInfo) -> None:
        """Ends the session if it has expired; else does what is due for its turns."""
        rows = self.storage.sql("SELECT last_active_at, ttl_s FROM session")
        if not rows:
            return
        directory = self.objects.namespace(Directory).get(self.id.tenant, DIRECTORY_NAME)
        if self._is_over(*rows[0]):
            if not await self._tell_usage():
                self.storage.set_alarm(self.clock.now() + AGAIN_AFTER_S)
                return
            # The entry goes first: with the session gone, there would be no alarm to try it again.
            await directory.remove(self.id.name)
            self._remove()
            return
        if self._copy.is_under_way():
            self._plan()
            return
        before = self.metadata()
        for _ in range(LOOKED_AFTER_MAX):
            # Asked again each time: while this waits for others, a runner may have claimed a turn, or renewed.
            due = self._turns.next_due()
            if due is None:
                break
            if self._turns.look_after(*due):
                await self._offer(due[0])
        await self._tell_usage()
        self._plan()
        rows = self.storage.sql("SELECT last_active_at, ttl_s FROM session")
        # Alarms that come for turns alone are many.
        if not self._is_over(*rows[0]) and (before["expires_at"] is not None or self.metadata() != before):
            await directory.put(self.metadata())

    async def _offer(self, turn_id: str) -> None:
        queue = self.objects.namespace(TurnQueue).get(QUEUE_TENANT, QUEUE_NAME)
        try:
            await queue.offer(self.id.tenant, self.id.name, turn_id)
        except DurableError as error:
            # It is offered again when its time has come again, and other turns are due as well.
            self.logger.warning("turn=%s could not be offered: %s", turn_id, error)

    async def _tell_usage(self) -> bool:
        """Has the tenant's count know what turns have used. False: not all, now; it is tried again later."""
        for used in self._outbox.untold():
            count = self.objects.namespace(TokenUsage).get(self.id.tenant, USAGE_NAME)
            try:
                await count.add.once(used.turn_id)(used.at, used.model, used.input_tokens, used.output_tokens)
            except DurableError as error:
                # It stays in the outbox: turns must not wait for it.
                self.logger.warning("turn=%s its usage could not be told: %s", used.turn_id, error)
                self._outbox.put_off(self.clock.now())
                return False
            self._outbox.told(used.turn_id)
        return self._outbox.next_due_at() is None

    def _plan(self) -> None:
        """Has the alarm come for whatever is due first. One that comes too early is set anew then."""
        last_active_at, ttl_s = self.storage.sql("SELECT last_active_at, ttl_s FROM session")[0]
        all_times = (_expires_at(last_active_at, ttl_s), self._turns.next_due_at(), self._outbox.next_due_at())
        times = [time for time in all_times if time is not None]
        set_for = self.storage.get_alarm()
        if times and (set_for is None or min(times) < set_for):
            self.storage.set_alarm(min(times))

    def _touch(self) -> None:
        self.storage.sql("UPDATE session SET last_active_at = ?", self.clock.now())

    def _session(self) -> tuple[Any, ...]:
        rows = self.storage.sql(
            "SELECT user_id, title, metadata, created_at, last_active_at, ttl_s, messages_max, message_count"
            " FROM session WHERE copying IS NULL"
        )
        if not rows or self._is_over(rows[0][4], rows[0][5]):
            raise ObjectNotFound(str(self.id))
        return rows[0]

    def _is_over(self, last_active_at: float, ttl_s: float | None) -> bool:
        expires_at = _expires_at(last_active_at, ttl_s)
        return expires_at is not None and self.clock.now() >= expires_at


def _expires_at(last_active_at: float, ttl_s: float | None) -> float | None:
    return None if ttl_s is None else last_active_at + ttl_s

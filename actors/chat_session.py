"""What was said in one conversation?

A session is made by `create`; until then, and after `delete` or expiry, every method raises `ObjectNotFound`. Messages
are numbered from 1 in the order in which they were acknowledged; of more than `messages_max` the oldest leave.

A session with a time to live ends by itself when it was not used for so long, and its entry in the directory with it.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors.directory import DIRECTORY_NAME, Directory, SessionMetadata
from actors.runtime import AlarmInfo, DurableObject, InvalidArgument, ObjectNotFound, exactly_once, idempotent, read

MESSAGES_MAX_DEFAULT = 1000
HISTORY_PAGE_MAX = 1000

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


class Message(TypedDict):
    """One message. `tokens` is None where nobody counted; `data` is what belongs to it, such as sources."""

    id: int
    role: str
    content: str
    tokens: int | None
    data: dict[str, Any] | None
    created_at: float


class Appended(TypedDict):
    """The number that a message got, and what the session's listing shows now."""

    id: int
    created_at: float
    message_count: int
    last_active_at: float
    expires_at: float | None


class History(TypedDict):
    """A page of messages, oldest first. `has_more` says that there are older ones."""

    messages: list[Message]
    has_more: bool


class ChatSession(DurableObject):
    migrations = migrations

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
        self._wake_to_expire(created["expires_at"])
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
            # Not by number alone: a cleared session starts at a high one.
            surplus = message_count - messages_max
            self.storage.sql("DELETE FROM message WHERE id IN (SELECT id FROM message ORDER BY id LIMIT ?)", surplus)
            message_count = messages_max
        self.storage.sql("UPDATE session SET last_active_at = ?, message_count = ?", now, message_count)
        expires_at = _expires_at(now, ttl_s)
        self._wake_to_expire(expires_at)
        return {
            "id": message_id,
            "created_at": now,
            "message_count": message_count,
            "last_active_at": now,
            "expires_at": expires_at,
        }

    @read
    def history(self, limit: int = 50, before: int | None = None) -> History:
        """The newest `limit` messages older than message `before`, oldest first."""
        self._session()
        limit = max(1, min(limit, HISTORY_PAGE_MAX))
        rows = self.storage.sql(
            "SELECT id, role, content, tokens, data, created_at FROM message WHERE id < ? ORDER BY id DESC LIMIT ?",
            2**62 if before is None else before,
            limit + 1,
        )
        messages: list[Message] = [
            {
                "id": message_id,
                "role": role,
                "content": content,
                "tokens": tokens,
                "data": None if data is None else json.loads(data),
                "created_at": created_at,
            }
            for message_id, role, content, tokens, data, created_at in rows[:limit]
        ]
        messages.reverse()
        return {"messages": messages, "has_more": len(rows) > limit}

    @idempotent
    def clear(self) -> SessionMetadata:
        """Removes all messages and keeps the session."""
        self._session()
        self.storage.sql("DELETE FROM message")
        self.storage.sql("UPDATE session SET message_count = 0")
        return self.metadata()

    @idempotent
    def delete(self) -> bool:
        """Removes the session and its file. False if there was none."""
        rows = self.storage.sql("SELECT 1 FROM session")
        self.storage.delete_all()
        return bool(rows)

    async def alarm(self, info: AlarmInfo) -> None:
        """Ends the session if it has expired; else has the directory know that it has not."""
        rows = self.storage.sql("SELECT last_active_at, ttl_s FROM session")
        if not rows:
            return
        directory = self.objects.namespace(Directory).get(self.id.tenant, DIRECTORY_NAME)
        if self._is_over(*rows[0]):
            # The entry goes first: with the session gone, there would be no alarm to try it again.
            await directory.remove(self.id.name)
            self.storage.delete_all()
        else:
            self._wake_to_expire(_expires_at(*rows[0]))
            await directory.put(self.metadata())

    def _wake_to_expire(self, expires_at: float | None) -> None:
        # One that is set comes early enough, and is set anew then: not with each message.
        if expires_at is not None and self.storage.get_alarm() is None:
            self.storage.set_alarm(expires_at)

    def _session(self) -> tuple[Any, ...]:
        rows = self.storage.sql(
            "SELECT user_id, title, metadata, created_at, last_active_at, ttl_s, messages_max, message_count"
            " FROM session"
        )
        if not rows or self._is_over(rows[0][4], rows[0][5]):
            raise ObjectNotFound(str(self.id))
        return rows[0]

    def _is_over(self, last_active_at: float, ttl_s: float | None) -> bool:
        expires_at = _expires_at(last_active_at, ttl_s)
        return expires_at is not None and self.clock.now() >= expires_at


def _expires_at(last_active_at: float, ttl_s: float | None) -> float | None:
    return None if ttl_s is None else last_active_at + ttl_s

"""What is known of a session besides what was said in it?

There is none until it is made, and none once it has expired, though its row is there until somebody removes it. One
that is being copied is there for nobody but whoever copies it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from actors.directory import SessionMetadata
from actors.message_log import MessageLog
from actors.runtime import Clock, ObjectId, ObjectNotFound, Storage
from actors.session_views import SessionUsage, Shown
from actors.turn import LEASE_S

#: One that was made before its entry in the listing makes that entry itself, unless it has heard by then that somebody
#: else did: with the first look after its turn.
LISTED_WITHIN_S = LEASE_S


class Settings(NamedTuple):
    """What a session is made with. `metadata` is the client's own."""

    user_id: str | None
    title: str | None
    metadata: dict[str, str]
    ttl_s: float | None
    messages_max: int


class SessionRow:
    """The row of one session. All but `exists`, `is_over`, `expires_at` and `remove` need it to be there."""

    def __init__(self, object_id: ObjectId, storage: Storage, clock: Clock, messages: MessageLog) -> None:
        self._id = object_id
        self._sql = storage.sql
        self._clock = clock
        self._messages = messages

    # -- whether it is there

    def exists(self) -> bool:
        """There is a row, though what it is of may have expired, or not be whole yet."""
        return bool(self._sql("SELECT 1 FROM session"))

    def expires_at(self) -> float | None:
        return next((expires_at for expires_at, _, _ in self._times()), None)

    def next_due_at(self) -> float | None:
        """When it expires, or makes its entry in the listing."""
        return min((time for row in self._times() for time in row[:2] if time is not None), default=None)

    def _times(self) -> list[tuple[float | None, float | None, bool]]:
        """Of the row, if there is one: when it expires, when it makes its entry, and whether it is being copied."""
        # One statement for all that looks: each has to be prepared in a session that was just opened.
        return self._sql("SELECT last_active_at + ttl_s, enlist_at, copying IS NOT NULL FROM session")

    def is_over(self) -> bool:
        expires_at = self.expires_at()
        return expires_at is not None and self._clock.now() >= expires_at

    def require(self) -> None:
        """
        Raises:
            ObjectNotFound: it is not there for its users.
        """
        for expires_at, _, is_copying in self._times():
            if not is_copying and (expires_at is None or self._clock.now() < expires_at):
                return
        raise ObjectNotFound(str(self._id))

    # -- making and changing it

    def make(self, settings: Settings, *, is_listed: bool) -> None:
        """One that is there is left as it is."""
        now = self._clock.now()
        self._sql(
            "INSERT INTO session"
            " (only, user_id, title, metadata, created_at, last_active_at, ttl_s, messages_max, enlist_at)"
            " VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            settings.user_id,
            settings.title,
            json.dumps(settings.metadata),
            now,
            now,
            settings.ttl_s,
            settings.messages_max,
            None if is_listed else now + LISTED_WITHIN_S,
        )

    def is_listed(self) -> bool:
        """It has no entry in the listing to make."""
        return [enlist_at for _, enlist_at, _ in self._times()] == [None]

    def enlist_at(self, time: float | None) -> None:
        """Has it make its entry then; None: it has one."""
        self._sql("UPDATE session SET enlist_at = ?", time)

    def update(self, changes: dict[str, Any]) -> None:
        """Changes `title` and `metadata` where `changes` names them; None clears."""
        if "title" in changes:
            self._sql("UPDATE session SET title = ?", changes["title"])
        if "metadata" in changes:
            self._sql("UPDATE session SET metadata = ?", json.dumps(changes["metadata"] or {}))

    def touch(self) -> None:
        self._sql("UPDATE session SET last_active_at = ?", self._clock.now())

    def keep_alive(self) -> None:
        """It does not expire under who runs its turn. Where it never does, that is not worth a write."""
        self._sql("UPDATE session SET last_active_at = ? WHERE ttl_s IS NOT NULL", self._clock.now())

    def remove(self) -> None:
        self._sql("DELETE FROM session")

    # -- keeping up with what is said

    def count_one(self, now: float) -> None:
        """A message was added: the oldest leaves where there are too many."""
        ((message_count, messages_max),) = self._sql("SELECT message_count, messages_max FROM session")
        self._sql("UPDATE session SET last_active_at = ?, message_count = ?", now, min(message_count + 1, messages_max))
        if message_count >= messages_max:
            self._messages.drop_oldest(message_count + 1 - messages_max)

    def recount(self) -> None:
        """Agrees with the messages, of which the oldest leave where there are too many."""
        count = self._messages.count()
        ((messages_max,),) = self._sql("SELECT messages_max FROM session")
        if count > messages_max:
            self._messages.drop_oldest(count - messages_max)
        self._sql("UPDATE session SET message_count = ?", min(count, messages_max))

    def add_usage(self, input_tokens: int, output_tokens: int) -> None:
        self._sql(
            "UPDATE session SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?",
            input_tokens,
            output_tokens,
        )

    # -- looking at it

    def settings(self) -> Settings:
        ((user_id, title, metadata, ttl_s, messages_max),) = self._sql(
            "SELECT user_id, title, metadata, ttl_s, messages_max FROM session"
        )
        return Settings(user_id, title, json.loads(metadata), ttl_s, messages_max)

    def metadata(self) -> SessionMetadata:
        ((user_id, title, metadata, created_at, last_active_at, expires_at, message_count),) = self._sql(
            "SELECT user_id, title, metadata, created_at, last_active_at, last_active_at + ttl_s, message_count"
            " FROM session"
        )
        return {
            "id": self._id.name,
            "tenant": self._id.tenant,
            "user_id": user_id,
            "title": title,
            "metadata": json.loads(metadata),
            "created_at": created_at,
            "last_active_at": last_active_at,
            "expires_at": expires_at,
            "message_count": message_count,
        }

    def shown(self) -> Shown:
        ((message_count, last_active_at, expires_at),) = self._sql(
            "SELECT message_count, last_active_at, last_active_at + ttl_s FROM session"
        )
        return {"message_count": message_count, "last_active_at": last_active_at, "expires_at": expires_at}

    def usage(self) -> SessionUsage:
        ((asked, answered),) = self._sql("SELECT input_tokens, output_tokens FROM session")
        return {"input_tokens": asked, "output_tokens": answered, "total_tokens": asked + answered}

"""How does a session become a copy of how another began?

Messages come in pages, in the order in which they were said; each page is one commit with the note of how far the copy
has got, so that whoever begins it again goes on from there and no message comes twice. Until it is whole, the session
is there for nobody else; one that is not finished in time expires.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict

from actors.message import Message
from actors.message_log import MessageLog
from actors.runtime import Clock, InvalidArgument, ObjectId, ObjectNotFound, Storage

#: What a copy takes is seconds. Whoever was interrupted has this long to come again.
FINISHED_WITHIN_S = 3_600.0


class Origin(TypedDict):
    """What a copy takes over from a session, besides the messages with ids below `before`."""

    session_id: str
    before: int
    user_id: str | None
    title: str | None
    metadata: dict[str, str]
    ttl_s: float | None
    messages_max: int


class CopyProgress(TypedDict):
    """Up to which message of the original the copy has them, and which is the first that it is not to have."""

    copied_to: int
    before: int


class _Note(TypedDict):
    """What the session's row says of a copy under way. `ttl_s` is what the whole session is to have."""

    source: str
    before: int
    copied_to: int
    ttl_s: float | None


class SessionCopy:
    """The copy that one session is, while it is made."""

    def __init__(self, object_id: ObjectId, storage: Storage, clock: Clock, messages: MessageLog) -> None:
        self._id = object_id
        self._sql = storage.sql
        self._clock = clock
        self._messages = messages

    def begin(self, origin: Origin) -> CopyProgress | None:
        """Makes the session, or says how far an earlier attempt got. None: it is whole.

        Raises:
            InvalidArgument: it is being made the copy of something else.
        """
        rows = self._sql("SELECT copying FROM session")
        if rows and rows[0][0] is None:
            return None
        if rows:
            note: _Note = json.loads(rows[0][0])
            if note["source"] != origin["session_id"]:
                raise InvalidArgument("session_id", self._id.name, "is being made a copy of another session")
            return {"copied_to": note["copied_to"], "before": note["before"]}
        note = {
            "source": origin["session_id"],
            "before": origin["before"],
            "copied_to": 0,
            "ttl_s": origin["ttl_s"],
        }
        now = self._clock.now()
        self._sql(
            "INSERT INTO session"
            " (only, user_id, title, metadata, created_at, last_active_at, ttl_s, messages_max, copying)"
            " VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
            origin["user_id"],
            origin["title"],
            json.dumps(origin["metadata"]),
            now,
            now,
            FINISHED_WITHIN_S,
            origin["messages_max"],
            json.dumps(note),
        )
        return {"copied_to": 0, "before": origin["before"]}

    def add(self, after: int, messages: Sequence[Message]) -> None:
        """Takes the messages that follow message `after` of the original, unless it has them."""
        note = self._note()
        if note is None or note["copied_to"] != after or not messages:
            return
        self._messages.copy(messages)
        copied: _Note = {**note, "copied_to": messages[-1]["id"]}
        self._sql(
            "UPDATE session SET message_count = message_count + ?, copying = ?", len(messages), json.dumps(copied)
        )

    def end(self) -> None:
        """The copy is whole: from here on the session is one like any other."""
        note = self._note()
        if note is not None:
            now = self._clock.now()
            self._sql("UPDATE session SET copying = NULL, ttl_s = ?, last_active_at = ?", note["ttl_s"], now)

    def is_under_way(self) -> bool:
        return bool(self._sql("SELECT 1 FROM session WHERE copying IS NOT NULL"))

    def _note(self) -> _Note | None:
        rows = self._sql("SELECT copying FROM session")
        if not rows:
            raise ObjectNotFound(str(self._id))
        note: _Note | None = None if rows[0][0] is None else json.loads(rows[0][0])
        return note

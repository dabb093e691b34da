"""Which sessions does a tenant have?

Lists them by name, newest first, without waking any. An entry is a copy of what the session said of itself last; the
session is right where they differ.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors.runtime import AlarmInfo, DurableObject, idempotent, read

#: Of a tenant's directory, among its objects of the class.
DIRECTORY_NAME = "sessions"
PAGE_MAX = 100
#: Entries that one call looks at, so that others need not wait long for a search.
SEARCHED_AT_ONCE_MAX = 20_000
#: A session removes its own entry when it expires. One that is left so long after that has no session, by a crash.
ENTRIES_KEPT_EXPIRED_S = 3_600.0

_COLUMNS = "id, user_id, title, metadata, created_at, last_active_at, expires_at, message_count"

migrations = Migrations("directory")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE session (id TEXT PRIMARY KEY, user_id TEXT, title TEXT, metadata TEXT NOT NULL,"
        " created_at REAL NOT NULL, last_active_at REAL NOT NULL, expires_at REAL, message_count INTEGER NOT NULL)"
        " WITHOUT ROWID"
    )
    database.execute("CREATE INDEX session_user_id ON session (user_id, id)")
    database.execute("CREATE INDEX session_expires_at ON session (expires_at) WHERE expires_at IS NOT NULL")


@migrations()
def add_folded_titles(database: Database) -> None:
    database.execute("ALTER TABLE session ADD COLUMN folded_title TEXT")
    titles = database.execute("SELECT id, title FROM session WHERE title IS NOT NULL").fetchall()
    for session_id, title in titles:
        database.execute("UPDATE session SET folded_title = ? WHERE id = ?", [folded(title), session_id])


def folded(text: str) -> str:
    """Equal for texts that differ only in case, or in how their characters are composed."""
    # Folded twice: some characters decompose into others that have a case.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).casefold()


class SessionMetadata(TypedDict):
    """What is known of a session without its messages. Times are seconds since 1970."""

    id: str
    tenant: str
    user_id: str | None
    title: str | None
    metadata: dict[str, str]
    created_at: float
    last_active_at: float
    expires_at: float | None
    message_count: int


class Activity(TypedDict):
    """What changes about a session with each message."""

    id: str
    last_active_at: float
    expires_at: float | None
    message_count: int


class SessionPage(TypedDict):
    """Sessions, newest first. `has_more` says that there are older ones, to be asked for with `after`."""

    sessions: list[SessionMetadata]
    has_more: bool


class SearchPage(SessionPage):
    """`searched_to`: the search is to go on behind that session. None: it has come to its end, or the page is full."""

    searched_to: str | None


class Directory(DurableObject):
    migrations = migrations

    @idempotent
    def put(self, session: SessionMetadata) -> None:
        """Enters a session, or replaces its entry."""
        self.storage.sql(
            "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            session["id"],
            session["user_id"],
            session["title"],
            json.dumps(session["metadata"]),
            session["created_at"],
            session["last_active_at"],
            session["expires_at"],
            session["message_count"],
            None if session["title"] is None else folded(session["title"]),
        )
        self._look_for_expired()

    def alarm(self, info: AlarmInfo) -> None:
        """Removes entries that no session removes."""
        before = self.clock.now() - ENTRIES_KEPT_EXPIRED_S
        self.storage.sql("DELETE FROM session WHERE expires_at <= ?", before)
        self._look_for_expired()

    def _look_for_expired(self) -> None:
        # One that is set is early enough, but for a session with less time to live: its entry is hidden meanwhile.
        if self.storage.get_alarm() is None:
            ((expires_at,),) = self.storage.sql("SELECT min(expires_at) FROM session WHERE expires_at IS NOT NULL")
            if expires_at is not None:
                self.storage.set_alarm(max(expires_at, self.clock.now()) + ENTRIES_KEPT_EXPIRED_S)

    @idempotent
    def note_activity(self, activities: Sequence[Activity]) -> None:
        """Updates entries; a session that was removed meanwhile stays removed."""
        self.storage.sql_many(
            "UPDATE session SET last_active_at = ?, expires_at = ?, message_count = ?"
            " WHERE id = ? AND last_active_at <= ?",
            [
                (a["last_active_at"], a["expires_at"], a["message_count"], a["id"], a["last_active_at"])
                for a in activities
            ],
        )

    @idempotent
    def remove(self, session_id: str) -> bool:
        """Removes an entry. False if there was none."""
        return bool(self.storage.sql("DELETE FROM session WHERE id = ? RETURNING 1", session_id))

    @read
    def page(self, *, limit: int = 20, after: str | None = None, user_id: str | None = None) -> SessionPage:
        """Sessions that have not expired, newest first, from behind the session `after`.

        Session ids grow with time, so a page can start behind one that was deleted.
        """
        limit = max(1, min(limit, PAGE_MAX))
        rows = self.storage.sql(
            f"SELECT {_COLUMNS} FROM session WHERE (?1 IS NULL OR id < ?1) AND (?2 IS NULL OR user_id = ?2)"  # noqa: S608
            " AND (expires_at IS NULL OR expires_at > ?3) ORDER BY id DESC LIMIT ?4",
            after,
            user_id,
            self.clock.now(),
            limit + 1,
        )
        return {"sessions": [self._entry(row) for row in rows[:limit]], "has_more": len(rows) > limit}

    @read
    def search(self, text: str, *, limit: int = 20, after: str | None = None, user_id: str | None = None) -> SearchPage:
        """As `page`, of those whose title holds `text` in any case. May stop before the page is full."""
        limit = max(1, min(limit, PAGE_MAX))
        there = "(?1 IS NULL OR id < ?1) AND (?2 IS NULL OR user_id = ?2)"
        last = self.storage.sql(
            f"SELECT id FROM session WHERE {there} ORDER BY id DESC LIMIT 1 OFFSET ?3",  # noqa: S608  a constant
            after,
            user_id,
            SEARCHED_AT_ONCE_MAX - 1,
        )
        searched_to: str | None = last[0][0] if last else None
        # Not LIKE: what is looked for is text, whatever is in it.
        rows = self.storage.sql(
            f"SELECT {_COLUMNS} FROM session WHERE {there}"  # noqa: S608  constants
            " AND (?3 IS NULL OR id >= ?3) AND (expires_at IS NULL OR expires_at > ?4) AND instr(folded_title, ?5) > 0"
            " ORDER BY id DESC LIMIT ?6",
            after,
            user_id,
            searched_to,
            self.clock.now(),
            folded(text),
            limit + 1,
        )
        has_more = len(rows) > limit
        return {
            "sessions": [self._entry(row) for row in rows[:limit]],
            "has_more": has_more,
            "searched_to": None if has_more else searched_to,
        }

    def _entry(self, row: tuple[Any, ...]) -> SessionMetadata:
        session_id, user_id, title, metadata, created_at, last_active_at, expires_at, message_count = row
        return {
            "id": session_id,
            "tenant": self.id.tenant,
            "user_id": user_id,
            "title": title,
            "metadata": json.loads(metadata),
            "created_at": created_at,
            "last_active_at": last_active_at,
            "expires_at": expires_at,
            "message_count": message_count,
        }

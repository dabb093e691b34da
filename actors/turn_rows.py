"""Which turns has a session, and in which state is each?

A row is there before anything runs, and stays for a day at least after the turn has ended. Turns come in the order of
their numbers; the oldest that has not ended is the one that may run. Rows are changed by those whose business a change
is, in statements of their own: this is where they are found.
"""

from __future__ import annotations

import json
from typing import Any, cast

from actors.runtime import ObjectId, ObjectNotFound, Storage
from actors.turn import NewTurn, TurnInfo, TurnStatus, Usage

TURN_PAGE_MAX = 100
#: Rows of turns that have ended, their events long gone: as long as a request is recognised when it comes again.
ENDED_KEPT_MIN = 1000
ENDED_KEPT_S = 86_400.0

_COLUMNS = (
    "id, status, created_at, started_at, ended_at, message_id, answer_id, attempt, last_event, cancel_requested,"
    " finish_reason, usage, error"
)


class TurnRows:
    """The rows of one session's turns."""

    def __init__(self, object_id: ObjectId, storage: Storage) -> None:
        self._id = object_id
        self._sql = storage.sql

    # -- one

    def get(self, turn_id: str, columns: str) -> tuple[Any, ...]:
        """
        Args:
            columns: as in SQL; never of a user's.

        Raises:
            ObjectNotFound: there is no such turn.
        """
        rows = self._sql(f"SELECT {columns} FROM turn WHERE id = ?", turn_id)  # noqa: S608  constants of the callers
        if not rows:
            raise ObjectNotFound(f"{self._id}/{turn_id}")
        return rows[0]

    def info(self, turn_id: str) -> TurnInfo:
        """
        Raises:
            ObjectNotFound: there is no such turn.
        """
        return _info(self.get(turn_id, _COLUMNS))

    def request(self, turn_id: str) -> dict[str, Any]:
        """What was asked of whoever runs the turn."""
        (request,) = self.get(turn_id, "request")
        return cast("dict[str, Any]", json.loads(request))

    def used_before(self, turn_id: str) -> Usage | None:
        """What the attempts before the last one have used."""
        (used,) = self.get(turn_id, "used_before")
        return cast("Usage | None", used and json.loads(used))

    def used_by_lost(self, turn_id: str) -> Usage | None:
        """What the last attempt had used when it was heard of last; it may have used a little more."""
        (used,) = self.get(turn_id, "used")
        return cast("Usage", {**json.loads(used), "estimated": True}) if used else None

    def disown(self, turn_id: str) -> int:
        """Forgets the `client` part of a turn's request. Returns how many other turns have one."""
        self.get(turn_id, "id")
        self._sql("UPDATE turn SET request = json_remove(request, '$.client') WHERE id = ?", turn_id)
        ((others,),) = self._sql("SELECT count(*) FROM turn WHERE json_extract(request, '$.client') IS NOT NULL")
        return int(others)

    def insert(self, new: NewTurn, digest: bytes, now: float, due_at: float) -> None:
        ((number,),) = self._sql(
            "INSERT INTO turn"
            " (id, status, message, leading, replaces, model, request, key, fingerprint, limits, created_at, due_at)"
            " VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
            new["turn_id"],
            new["message"],
            # As it is: what can't be stored later is refused now.
            json.dumps(new["leading"], ensure_ascii=False) if new["leading"] else None,
            new["replace"],
            new["model"],
            json.dumps(new["request"]),
            new["key"],
            digest,
            json.dumps(new["limits"]),
            now,
            due_at,
        )
        oldest_kept = number - 1 - ENDED_KEPT_MIN
        if oldest_kept > 1:
            self._sql(
                "DELETE FROM turn WHERE ended_at < ? AND due_at IS NULL AND number < ?",
                now - ENDED_KEPT_S,
                oldest_kept,
            )

    # -- several

    def begun_as(self, turn_id: str, key: str | None) -> tuple[str, bytes] | None:
        """The turn that has this id, or else this key, and what it was asked, as a digest."""
        rows = self._sql("SELECT id, fingerprint FROM turn WHERE id = ?", turn_id)
        if not rows and key is not None:
            rows = self._sql("SELECT id, fingerprint FROM turn WHERE key = ?", key)
        return cast("tuple[str, bytes]", rows[0]) if rows else None

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

    def newest(self) -> str | None:
        rows = self._sql("SELECT id FROM turn ORDER BY number DESC LIMIT 1")
        return str(rows[0][0]) if rows else None

    def open(self) -> list[tuple[str, TurnStatus]]:
        """Those that have not ended, oldest first."""
        rows = self._sql("SELECT id, status FROM turn WHERE ended_at IS NULL ORDER BY number")
        return cast("list[tuple[str, TurnStatus]]", rows)

    def is_first(self, turn_id: str) -> bool:
        """It is the oldest that has not ended."""
        return [first for first, _ in self.open()[:1]] == [turn_id]

    def page(self, limit: int, before: str | None) -> tuple[list[TurnInfo], bool]:
        """Turns, newest first, and whether there are older ones."""
        limit = max(1, min(limit, TURN_PAGE_MAX))
        (number,) = (2**62,) if before is None else self.get(before, "number")
        rows = self._sql(
            f"SELECT {_COLUMNS} FROM turn WHERE number < ? ORDER BY number DESC LIMIT ?",  # noqa: S608  a constant
            number,
            limit + 1,
        )
        return [_info(row) for row in rows[:limit]], len(rows) > limit

    # -- what is due

    def next_due_at(self) -> float | None:
        ((due_at,),) = self._sql("SELECT min(due_at) FROM turn WHERE due_at IS NOT NULL")
        return cast("float | None", due_at)

    def next_due(self, now: float) -> tuple[str, TurnStatus] | None:
        """A turn for which something is to be done now, with its state."""
        rows = self._sql("SELECT id, status FROM turn WHERE due_at <= ? ORDER BY due_at LIMIT 1", now)
        return cast("tuple[str, TurnStatus]", rows[0]) if rows else None

    def set_due(self, turn_id: str, due_at: float | None) -> None:
        self._sql("UPDATE turn SET due_at = ? WHERE id = ?", due_at, turn_id)

    # -- forgetting

    def forget_requests(self) -> None:
        """Of those that have ended: what was asked is part of what was said."""
        self._sql("UPDATE turn SET request = '{}' WHERE ended_at IS NOT NULL")

    def clear(self) -> None:
        self._sql("DELETE FROM turn")


def _info(row: tuple[Any, ...]) -> TurnInfo:
    values = dict(zip(_COLUMNS.replace(",", "").split(), row, strict=True))
    values["cancel_requested"] = bool(values["cancel_requested"])
    for name in ("usage", "error"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return cast("TurnInfo", values)

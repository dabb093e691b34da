"""When is an object woken, and what if its handler fails?

    self.storage.set_alarm(self.clock.now() + 60)

    async def alarm(self, info: AlarmInfo) -> None: ...

An object has at most one alarm. Its time stands in the object's database and changes with the turn that set it. The
handler runs at least once at or after that time; an alarm that is set while it runs takes the place of a retry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.runtime.authorizer import RESERVED_PREFIX
from actors.runtime.errors import InvalidArgument

TABLE = RESERVED_PREFIX + "alarm"
CREATE_TABLE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (only INTEGER PRIMARY KEY CHECK (only = 1), at REAL NOT NULL,"
    " scheduled_at REAL NOT NULL, retry_count INTEGER NOT NULL)"
)
#: A handler that raises is tried again this often; then the alarm is dropped. Failures of the runtime don't count.
RETRIES_MAX = 6
RETRY_FIRST_S = 2.0
#: Doublings of the pause, for what doesn't count and so has no end.
_DOUBLINGS_MAX = 9
_JITTER = 0.25
#: In 2286; what the name of an index entry can hold.
AT_MAX_S = 9_999_999_999.0

SELECT = f"SELECT at, scheduled_at, retry_count FROM {TABLE}"  # noqa: S608  a constant, as below
_SET = (
    f"INSERT INTO {TABLE} VALUES (1, ?1, ?1, 0) ON CONFLICT DO UPDATE"  # noqa: S608
    " SET at = excluded.at, scheduled_at = excluded.scheduled_at, retry_count = 0"
)
_RETRY = f"UPDATE {TABLE} SET at = ?, retry_count = retry_count + 1"  # noqa: S608
_DELETE = f"DELETE FROM {TABLE}"  # noqa: S608


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmInfo:
    """What a handler is told. Times are seconds since 1970."""

    #: When the alarm was set for.
    scheduled_at: float
    #: How often the handler has raised since.
    retry_count: int

    @property
    def is_retry(self) -> bool:
        return self.retry_count > 0


def retry_after_s(failures: int, chance: float) -> float:
    """The pause after the given number of failures in a row; `chance` from 0 to 1 spreads it by a quarter."""
    return RETRY_FIRST_S * 2.0 ** min(max(0, failures - 1), _DOUBLINGS_MAX) * (1 + _JITTER * chance)


class StoredAlarm:
    """The alarm in an object's database.

    Args:
        run: runs a statement that may touch `TABLE`.
    """

    __slots__ = ("_known", "_row", "_run", "changed", "in_flight", "last_set")

    def __init__(self, run: Callable[..., list[tuple[Any, ...]]]) -> None:
        self._run = run
        self._known = False
        self._row: tuple[float, float, int] | None = None
        #: The index has yet to follow.
        self.changed = False
        #: The handler runs for it, and has neither set another nor deleted it.
        self.in_flight = False
        #: What it was set to most lately, whether or not that was undone.
        self.last_set: float | None = None

    @property
    def row(self) -> tuple[float, float, int] | None:
        """(at, scheduled_at, retry_count)"""
        if not self._known or self.changed:  # the author may undo what changed it, by way of sqlite_utils
            rows = self._run(SELECT)
            self._row = (float(rows[0][0]), float(rows[0][1]), int(rows[0][2])) if rows else None
            self._known = True
        return self._row

    @property
    def at(self) -> float | None:
        row = self.row
        return row[0] if row else None

    def get(self) -> float | None:
        return None if self.in_flight else self.at

    def set(self, at: float) -> None:
        if isinstance(at, bool) or not isinstance(at, (int, float)) or math.isnan(at):
            raise InvalidArgument("at", at, "must be a time in seconds since 1970")
        if at > AT_MAX_S:
            raise InvalidArgument("at", at, f"must be a time before {AT_MAX_S:.0f}, in seconds since 1970")
        at = max(0.0, float(at))
        self._run(_SET, at)
        self._row, self._known, self.changed, self.in_flight = (at, at, 0), True, True, False
        self.last_set = at

    def delete(self) -> None:
        if self.row is not None:
            self._run(_DELETE)
            self._row, self.changed = None, True
        self.in_flight = False

    def retry(self, at: float) -> None:
        self._run(_RETRY, at)
        self._known, self.changed, self.in_flight = False, True, False

    def is_gone(self) -> None:
        """The object was deleted, and its alarm with it."""
        self._row, self._known, self.changed, self.in_flight = None, True, False, False

    def forget(self) -> None:
        """Something was rolled back: what is known may be wrong."""
        self._known = False

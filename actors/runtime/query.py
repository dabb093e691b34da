"""What may be asked of an object's database from outside?

One statement that reads, with limits on its time, its rows and their size. It sees all tables, the runtime's own among
them, since whoever looks for a mistake needs them. What it could do to the object is nothing: an authorizer that knows
reading alone stands before it, and the connection takes no writes while it runs.

Values in it may be large, since the driver can't limit them: functions that make large ones out of nothing are refused,
and text that a statement puts together is limited by its time and by SQLite's own 1 GB.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlite_utils.utils import sqlite3

from actors.runtime import sqlite
from actors.runtime.connection import ObjectConnection
from actors.runtime.errors import InvalidArgument, ObjectFailed, StatementRefused

ROWS_DEFAULT = 100
ROWS_MAX = 1000
TIMEOUT_DEFAULT_S = 1.0
TIMEOUT_MAX_S = 5.0
#: Of all values together; a row that does not fit ends the result.
RESULT_BYTES_MAX = 4 * 1024 * 1024
SQL_CHARS_MAX = 100_000
BINDS_MAX = 1000

#: Steps of SQLite's machine between two looks at the clock: well below a millisecond.
_STEPS = 1000
_SQLITE_INTERRUPT = 9
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_FUNCTIONS_REFUSED = frozenset({"load_extension", "zeroblob", "randomblob", "printf", "format"})
# Full-text search reads it with each query, to see whether what it remembers is still so.
_PRAGMAS = frozenset({"data_version"})
# The texts of other statements, and raw pages.
_TABLES_REFUSED = frozenset({"sqlite_stmt", "sqlite_dbpage"})
_Value = None | int | float | str | bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A statement with its limits.

    Raises:
        InvalidArgument: a limit is beyond what anybody may ask for.
    """

    sql: str
    binds: tuple[_Value, ...] = ()
    rows_max: int = ROWS_DEFAULT
    timeout_s: float = TIMEOUT_DEFAULT_S

    def __post_init__(self) -> None:
        if len(self.sql) > SQL_CHARS_MAX:
            raise InvalidArgument("sql", self.sql, f"must have at most {SQL_CHARS_MAX} characters")
        if "\0" in self.sql:
            raise InvalidArgument("sql", self.sql, "must not hold a zero character")
        if len(self.binds) > BINDS_MAX:
            raise InvalidArgument("binds", f"{len(self.binds)} values", f"must be at most {BINDS_MAX}")
        if not 1 <= self.rows_max <= ROWS_MAX:
            raise InvalidArgument("rows_max", self.rows_max, f"must be from 1 to {ROWS_MAX}")
        if not 0 < self.timeout_s <= TIMEOUT_MAX_S:
            raise InvalidArgument("timeout_s", self.timeout_s, f"must be above 0 and at most {TIMEOUT_MAX_S:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """What a query found. `truncated`: there was more than its limits let through."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool


def plain_value(value: Any) -> Any:
    """As JSON can hold it: `{"base64": ...}` for bytes, `{"float": "inf"}` for what is no JSON number."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def run(
    object_key: str,
    connection: ObjectConnection,
    query: Query,
    *,
    stopped: Callable[[], bool],
    monotonic: Callable[[], float] = time.monotonic,
) -> QueryResult:
    """Runs `query` on a connection that nobody else uses meanwhile; blocks for as long as it takes.

    Raises:
        StatementRefused: it would do more than read.
        InvalidArgument: SQLite can't run it, or not in time.
        ObjectFailed: the database can't be read.
    """
    give_up_s = monotonic() + query.timeout_s
    reading = _Reading()
    cursor = sqlite3.Cursor(connection)
    connection.run_own("PRAGMA query_only = ON")
    text_factory = connection.text_factory
    # Text is bytes that somebody wrote; what is not UTF-8 is shown as far as it can be.
    connection.text_factory = _decoded
    connection.set_progress_handler(lambda: stopped() or monotonic() > give_up_s, _STEPS)
    try:
        with connection.authorized_by(reading):
            # A statement that was prepared for the object is kept by its text, and this must not meet it. The secret
            # stands in front: what follows an expression becomes part of its column's name.
            cursor.execute(f"/* {connection.secret} */ {query.sql}", query.binds)
            return _fetch(cursor, query)
    except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError, OverflowError) as error:
        if reading.refused is not None:
            raise StatementRefused(object_key, reading.refused, "what comes from outside may read only") from error
        if getattr(error, "sqlite_errorcode", 0) == _SQLITE_INTERRUPT:
            problem = "was ended: its host is stopping" if stopped() else f"took longer than {query.timeout_s:g} s"
            raise InvalidArgument("sql", query.sql, problem) from error
        if sqlite.critical(error):
            raise ObjectFailed(object_key, type(error).__name__, str(error)) from error
        raise InvalidArgument("sql", query.sql, f"SQLite says: {error}") from error
    finally:
        cursor.close()
        connection.set_progress_handler(None, 0)
        connection.text_factory = text_factory
        connection.run_own("PRAGMA query_only = OFF")


def _fetch(cursor: Any, query: Query) -> QueryResult:
    columns = tuple(column[0] for column in cursor.description or ())
    rows: list[tuple[Any, ...]] = []
    size_bytes = 0
    truncated = False
    for row in cursor:
        size_bytes += sum(map(_size_bytes, row))
        if len(rows) >= query.rows_max or size_bytes > RESULT_BYTES_MAX:
            truncated = True
            break
        rows.append(tuple(row))
    return QueryResult(columns=columns, rows=tuple(rows), truncated=truncated)


class _Reading:
    """The authorizer of a query."""

    def __init__(self) -> None:
        self.refused: str | None = None

    def __call__(
        self, action: int, first: str | None, second: str | None, database: str | None, inside: str | None
    ) -> int:
        if action in _READS and (first or "").lower() not in _TABLES_REFUSED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() not in _FUNCTIONS_REFUSED:
                return sqlite3.SQLITE_OK
            self.refused = f"call {second}"
        elif action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS and second is None:
            return sqlite3.SQLITE_OK
        else:
            self.refused = "do more than SELECT"
        return sqlite3.SQLITE_DENY


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace")


def _size_bytes(value: _Value) -> int:
    # Not encoded again to know it exactly: a character has at least one byte.
    return len(value) if isinstance(value, str | bytes) else 8

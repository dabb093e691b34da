"""What may be asked of an object's database from outside?

One statement that reads, with limits on its time, its memory, its rows and their size. It sees all tables, the
runtime's own among them, since whoever looks for a mistake needs them. What it could do to the object is nothing: it
runs in a process of its own (`query_child`), which opens the file for reading, knows reading alone, and is killed with
whatever it is in the middle of when its time is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.runtime import query_child, sqlite
from actors.runtime.child import ChildEnded, ChildLimits, Program, Why, answer_of
from actors.runtime.errors import InvalidArgument, ObjectFailed, ObjectReset, StatementRefused
from actors.runtime.query_child import RESULT_BYTES_MAX, plain_value, value_of

ROWS_DEFAULT = 100
ROWS_MAX = 1000
TIMEOUT_DEFAULT_S = 1.0
TIMEOUT_MAX_S = 5.0
SQL_CHARS_MAX = 100_000
BINDS_MAX = 1000
#: What a statement may put together, or sort, at once.
MEMORY_BYTES_MAX = 512 * 1024 * 1024

# A character takes up to six bytes in JSON, and there are names of columns as well.
_ANSWER_BYTES_MAX = 8 * RESULT_BYTES_MAX
_MEBIBYTE = 1024 * 1024
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


def run(object_key: str, path: Path, query: Query, *, stopped: Callable[[], bool]) -> QueryResult:
    """Runs `query` on a database that nobody has open meanwhile; blocks until it has ended.

    That is at most `GRACE_S` after its time, whatever it does.

    Raises:
        StatementRefused: it would do more than read.
        InvalidArgument: SQLite can't run it, or not in time, or not within its memory.
        ObjectFailed: the database can't be read.
        ObjectReset: it can't be opened, or the host is stopping.
        ObjectOverloaded: no process could be started for it.
    """
    late = InvalidArgument("sql", query.sql, f"took longer than {query.timeout_s:g} s")
    large = InvalidArgument("sql", query.sql, f"took more memory than {MEMORY_BYTES_MAX // _MEBIBYTE} MiB")
    driver, folder = sqlite.driver()
    try:
        uri, logged = sqlite.uri_to_peek(path)
        asked = {
            "driver": driver,
            "uri": uri,
            "logged": logged,
            "sql": query.sql,
            "binds": [plain_value(value) for value in query.binds],
            "rows_max": query.rows_max,
            "timeout_s": query.timeout_s,
        }
        program = Program(path=Path(query_child.__file__).resolve(), folders=(folder,))
        answer = answer_of(program, asked, _limits(query), stopped=stopped)
    except OSError as failure:
        raise ObjectReset(object_key, f"open failed: {failure}") from failure
    except ChildEnded as ended:
        if (error := ended.meaning(object_key)) is not None:
            raise error from ended
        if ended.why is Why.LATE:
            raise late from ended
        raise InvalidArgument("sql", query.sql, f"ended the process that ran it ({ended.detail})") from ended
    if "rows" in answer:
        rows = tuple(tuple(map(value_of, row)) for row in answer["rows"])
        return QueryResult(columns=tuple(answer["columns"]), rows=rows, truncated=answer["truncated"])
    if "late" in answer:
        raise late
    if "memory" in answer:
        raise large
    if "refused" in answer:
        raise StatementRefused(object_key, answer["refused"], "what comes from outside may read only")
    if "open" in answer:
        raise ObjectReset(object_key, f"open failed: {answer['open']}")
    if sqlite.is_critical(answer["code"]):
        raise ObjectFailed(object_key, answer["type"], answer["message"])
    raise InvalidArgument("sql", query.sql, f"SQLite says: {answer['message']}")


def _limits(query: Query) -> ChildLimits:
    return ChildLimits(
        timeout_s=query.timeout_s,
        memory_bytes=MEMORY_BYTES_MAX,
        file_bytes=0,
        answer_bytes_max=_ANSWER_BYTES_MAX,
    )

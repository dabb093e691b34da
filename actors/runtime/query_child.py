"""A program: runs one statement that reads on one database, and answers with its rows.

It is started by `query`, through `limited`. The statement is anybody's: an authorizer that knows reading alone stands
before it, the file is opened for reading only, and memory and time have limits that the process takes with it.

What is asked and answered is JSON; `plain_value` says how it holds what JSON can't.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
import os
import sys
import time
from typing import Any

#: Of all values together; a row that does not fit ends the result.
RESULT_BYTES_MAX = 4 * 1024 * 1024

#: Steps of SQLite's machine between two looks at the clock: well below a millisecond.
_STEPS = 1000
_INTERRUPT = 9
_FUNCTIONS_REFUSED = frozenset({"load_extension", "zeroblob", "randomblob", "printf", "format"})
# Full-text search reads it with each query, to see whether what it remembers is still so.
_PRAGMAS = frozenset({"data_version"})
# The texts of other statements, and raw pages.
_TABLES_REFUSED = frozenset({"sqlite_stmt", "sqlite_dbpage"})

# What is sorted stays in memory, which has a limit: no file may be written.
_SETUP = """
PRAGMA temp_store = MEMORY;
PRAGMA trusted_schema = OFF;
PRAGMA query_only = ON;
"""


def plain_value(value: Any) -> Any:
    """As JSON can hold it: `{"base64": ...}` for bytes, `{"float": "inf"}` for what is no JSON number."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def value_of(plain: Any) -> Any:
    """What `plain_value` was made of."""
    if isinstance(plain, dict):
        return base64.b64decode(plain["base64"]) if "base64" in plain else float(plain["float"])
    return plain


def main() -> None:
    asked = json.load(sys.stdin)
    driver = importlib.import_module(asked["driver"])
    try:
        try:
            connection = _open(driver, asked["uri"], logged=asked["logged"])
        finally:
            print(flush=True)  # noqa: T201  its time begins
        answer = _answer(driver, connection, asked)
    except driver.Error as error:
        answer = {"open": str(error)}
    except MemoryError:
        answer = {"memory": True}
    # The connection is not closed, which could write to the file: it is left to the kernel.
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode(errors="replace"))
    sys.stdout.flush()
    os._exit(0)


def _answer(driver: Any, connection: Any, asked: dict[str, Any]) -> dict[str, Any]:
    connection.text_factory = lambda text: text.decode(errors="replace")
    reading = _Reading(driver)
    connection.set_authorizer(reading)
    give_up_s = time.monotonic() + asked["timeout_s"]
    connection.set_progress_handler(lambda: time.monotonic() > give_up_s, _STEPS)
    try:
        cursor = connection.execute(asked["sql"], [value_of(plain) for plain in asked["binds"]])
        return _fetched(cursor, asked["rows_max"])
    except (driver.Error, driver.Warning, UnicodeError, OverflowError) as error:
        if reading.refused is not None:
            return {"refused": reading.refused}
        code = getattr(error, "sqlite_errorcode", 0)
        if code == _INTERRUPT:
            return {"late": True}
        return {"code": code, "type": type(error).__name__, "message": str(error)}


def _open(driver: Any, uri: str, *, logged: bool) -> Any:
    connection = driver.connect(uri, uri=True, isolation_level=None, timeout=0)
    if logged:
        # A log that a crash left is read with an index of it in memory, without a -shm file.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.executescript(_SETUP)
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return connection


def _fetched(cursor: Any, rows_max: int) -> dict[str, Any]:
    columns = [column[0] for column in cursor.description or ()]
    rows: list[list[Any]] = []
    size_bytes = 0
    for row in cursor:
        size_bytes += sum(map(_size_bytes, row))
        if len(rows) >= rows_max or size_bytes > RESULT_BYTES_MAX:
            return {"columns": columns, "rows": rows, "truncated": True}
        rows.append([plain_value(value) for value in row])
    return {"columns": columns, "rows": rows, "truncated": False}


class _Reading:
    """The authorizer of a query."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._reads = {driver.SQLITE_SELECT, driver.SQLITE_READ, driver.SQLITE_RECURSIVE}
        self.refused: str | None = None

    def __call__(
        self, action: int, first: str | None, second: str | None, database: str | None, inside: str | None
    ) -> int:
        allowed: int = self._driver.SQLITE_OK
        if action in self._reads and (first or "").lower() not in _TABLES_REFUSED:
            return allowed
        if action == self._driver.SQLITE_FUNCTION:
            if (second or "").lower() not in _FUNCTIONS_REFUSED:
                return allowed
            self.refused = f"call {second}"
        elif action == self._driver.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS and second is None:
            return allowed
        else:
            self.refused = "do more than SELECT"
        denied: int = self._driver.SQLITE_DENY
        return denied


def _size_bytes(value: int | float | str | bytes | None) -> int:
    # Not encoded again to know it exactly: a character has at least one byte.
    return len(value) if isinstance(value, str | bytes) else 8


if __name__ == "__main__":
    main()

"""Is a database that came from outside an object of this class, and whole?

It is looked through before it counts: that SQLite finds no fault in it, that it has the runtime's tables as they are
made here and the class's migrations and no other's, and none that this code does not know. Views and triggers are code:
they would run in the host, for as long as they like, and only those that the class's migrations make are let in. Then
it is brought up to date, as any file is when its object wakes. Until all of that is done it is a file beside the
objects, and no object's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.runtime import key_values, sqlite
from actors.runtime.alarm import AT_MAX_S, StoredAlarm
from actors.runtime.connection import ObjectConnection
from actors.runtime.errors import InvalidArgument, ObjectReset
from actors.runtime.schema import REQUESTS_TABLE, Schema

_HEADER = b"SQLite format 3\0"
_STEPS = 10_000
_FIELD = "database"


def make_ready(
    path: Path,
    object_key: str,
    schema: Schema,
    *,
    size_bytes_max: int,
    stopped: Callable[[], bool],
) -> float | None:
    """Makes the file at `path` one that the object could have written, or refuses it. Returns when its alarm is due.

    Raises:
        InvalidArgument: it is no whole database of the class.
        SchemaTooNew: newer code wrote it.
        ObjectReset: the disk failed.
    """
    with path.open("rb") as file:
        if file.read(len(_HEADER)) != _HEADER:
            raise InvalidArgument(_FIELD, path.stat().st_size, "is no SQLite database")
    with _refusing():
        connection = sqlite.connect(path, size_bytes_max)
    try:
        connection.set_progress_handler(stopped, _STEPS)
        with _refusing():
            _require_sound(connection)
            _require_class(connection, schema)
        connection.guard(object_key)
        with _refusing():
            schema.bring_up_to_date(object_key, connection)
            if changed := schema.own_differences(connection):
                raise InvalidArgument(_FIELD, changed[0], "has changed tables of the runtime's")
            alarm_at = _alarm_at(connection)
            # What an export is not, so that it is one file that any SQLite opens.
            connection.run_own("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    if sqlite.wal_of(path).exists():
        raise ObjectReset(object_key, "import failed: its log could not be folded into it")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return alarm_at


def _require_sound(connection: ObjectConnection) -> None:
    ((page_bytes,),) = connection.run_own("PRAGMA page_size")
    if page_bytes != sqlite.PAGE_BYTES:
        raise InvalidArgument(_FIELD, page_bytes, f"must have pages of {sqlite.PAGE_BYTES} bytes")
    ((said,), *_) = connection.run_own("PRAGMA integrity_check(1)")
    if said != "ok":
        raise InvalidArgument(_FIELD, said, "is damaged")


def _require_class(connection: ObjectConnection, schema: Schema) -> None:
    tables = {name for (name,) in connection.run_own("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not {REQUESTS_TABLE, key_values.TABLE} <= tables:
        raise InvalidArgument(_FIELD, "another", "was not made by a durable object")
    # First: whatever is read may be a view.
    if programs := schema.foreign_programs(connection):
        raise InvalidArgument(_FIELD, programs[0], "has a view or a trigger that its class does not make")
    if others := schema.other_sets(connection):
        raise InvalidArgument(_FIELD, others[0], "is of another class: it has other migrations")
    if schema.names and not schema.applied(connection):
        raise InvalidArgument(_FIELD, "none", "is of another class: it has none of its migrations")


def _alarm_at(connection: ObjectConnection) -> float | None:
    try:
        at = StoredAlarm(connection.run_own).at
    except (ValueError, OverflowError):  # SQLite keeps any value in a column of any type
        at = math.nan
    if at is not None and not 0 <= at <= AT_MAX_S:
        raise InvalidArgument(_FIELD, "its alarm", "has an alarm at no time")
    return at


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except sqlite.Error as error:
        if sqlite.is_full(error):
            raise
        raise InvalidArgument(_FIELD, type(error).__name__, f"is refused by SQLite: {error}") from error

"""What tables does a class's database have, and is a given file up to date?

A `Schema` is made once per class and process. It prepares the template that new databases are copied from, and brings
older files up to date when they are opened. Files of newer code are refused, never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import alarm, key_values, sqlite
from actors.runtime.authorizer import RESERVED_PREFIX
from actors.runtime.connection import ObjectConnection
from actors.runtime.errors import SchemaTooNew

#: Results of `@exactly_once` turns, by request id; in every object's database.
REQUESTS_TABLE = RESERVED_PREFIX + "requests"

#: The tables of the runtime itself. Whoever changes them adds one here, and brings older files there.
RUNTIME_VERSION = 2
# Each must do nothing where it was run before.
_RUNTIME_TABLES = (
    f"CREATE TABLE IF NOT EXISTS {REQUESTS_TABLE} (request_id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL,"
    " result BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
    f"CREATE INDEX IF NOT EXISTS {REQUESTS_TABLE}_at ON {REQUESTS_TABLE} (at)",
    key_values.CREATE_TABLE,
    alarm.CREATE_TABLE,
    # Not a table of ours: reading it costs nothing on activation, where it is in the file's first page.
    f"PRAGMA user_version = {RUNTIME_VERSION}",
)
_ENTRIES = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
# What runs by itself, and what is the runtime's own.
_PROGRAMS = f"{_ENTRIES} WHERE type IN ('view', 'trigger')"
_IS_OWN = f"lower(substr(%s, 1, {len(RESERVED_PREFIX)})) = '{RESERVED_PREFIX}'"
_OWN = f"{_ENTRIES} WHERE {_IS_OWN % 'name'} OR {_IS_OWN % 'tbl_name'}"


class Schema:
    """The tables of the runtime and the migrations of one class, in order, with a template that they end in."""

    def __init__(self, migrations: Migrations | None) -> None:
        self.migrations = migrations
        #: The table that says which of them a file has. A class without any may get some.
        self.ledger = (migrations or Migrations).migrations_table
        quoted = '"' + self.ledger.replace('"', '""') + '"'
        self._applied_sql = f"SELECT name FROM {quoted} WHERE migration_set = ? ORDER BY id"  # noqa: S608  the class's
        self._others_sql = f"SELECT DISTINCT migration_set FROM {quoted} WHERE migration_set IS NOT ?"  # noqa: S608
        self._names = [step.name for step in migrations.pending(Database(memory=True))] if migrations else []
        self.template = sqlite.prepare_template(self._build)

    def _build(self, connection: ObjectConnection) -> None:
        connection.guard("a new object", self.ledger)
        with _transaction(connection):
            self._apply(connection)
        self._programs, self._own = connection.run_own(_PROGRAMS), connection.run_own(_OWN)

    @property
    def facts(self) -> dict[str, Any]:
        """What tells a file of the class from others, and how to ask it, as JSON for a process that knows no class."""
        return {
            "tables": [REQUESTS_TABLE, key_values.TABLE],
            "version": RUNTIME_VERSION,
            "migrations_table": self.ledger,
            "set": self.migrations.name if self.migrations else None,
            "names": self._names,
            "applied_sql": self._applied_sql,
            "others_sql": self._others_sql,
            "programs": self._programs,
            "programs_sql": _PROGRAMS,
            "own": self._own,
            "own_sql": _OWN,
            "alarm_sql": alarm.SELECT,
            "alarm_at_max": alarm.AT_MAX_S,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Of all migrations, in order."""
        return tuple(self._names)

    def applied(self, connection: ObjectConnection) -> tuple[str, ...]:
        """Of the migrations that a database has."""
        return tuple(self._applied(connection, self.migrations.name)) if self.migrations else ()

    def is_up_to_date(self, connection: ObjectConnection) -> bool:
        ((version,),) = connection.run_own("PRAGMA user_version")
        return bool(version == RUNTIME_VERSION) and self.applied(connection) == self.names

    def bring_up_to_date(self, object_key: str, connection: ObjectConnection) -> None:
        """Applies what is missing in one transaction: all of it or nothing.

        Raises:
            SchemaTooNew: the file has tables or migrations that this code doesn't know.
        """
        ((version,),) = connection.run_own("PRAGMA user_version")
        if version > RUNTIME_VERSION:
            raise SchemaTooNew(object_key, f"runtime {version}", f"runtime {RUNTIME_VERSION}")
        applied = self._applied(connection, self.migrations.name) if self.migrations else []
        if applied == self._names and version == RUNTIME_VERSION:
            return
        if unknown := [name for name in applied if name not in self._names]:
            raise SchemaTooNew(object_key, unknown[-1], self._names[-1] if self._names else "none")
        with _transaction(connection):
            self._apply(connection)

    def _apply(self, connection: ObjectConnection) -> None:
        for statement in _RUNTIME_TABLES:
            connection.run_own(statement)
        if self.migrations:
            with connection.migrating():
                self.migrations.apply(Database(connection))

    def _applied(self, connection: ObjectConnection, migration_set: str) -> list[str]:
        # Not Migrations.applied(): it inspects the table with several statements, and this runs on every activation.
        if not connection.run_own("SELECT 1 FROM sqlite_schema WHERE name = ?", self.ledger):
            return []  # the class had no migrations when the file was made
        return [name for (name,) in connection.run_own(self._applied_sql, migration_set)]


@contextmanager
def _transaction(connection: ObjectConnection) -> Iterator[None]:
    # Not Database.atomic(): under the authorizer only the runtime begins and commits.
    connection.run_own("BEGIN")
    connection.in_turn = True
    try:
        yield
        connection.run_own("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.run_own("ROLLBACK")
        raise
    finally:
        connection.in_turn = False

"""What tables does a class's database have, and is a given file up to date?

A `Schema` is made once per class and process. It prepares the template that new databases are copied from, and brings
older files up to date when they are opened. Files of newer code are refused, never touched.
"""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import sqlite
from actors.runtime.errors import SchemaTooNew

#: Results of `@exactly_once` turns, by request id; in every object's database.
REQUESTS_TABLE = sqlite.RESERVED_PREFIX + "requests"


class Schema:
    """The migrations of one class, in order, with a template of the database that they end in."""

    def __init__(self, migrations: Migrations | None) -> None:
        self._migrations = migrations
        self._names = [step.name for step in migrations.pending(Database(memory=True))] if migrations else []
        self.template = sqlite.prepare_template(self._build)

    def _build(self, database: Database) -> None:
        database.execute(
            f"CREATE TABLE {REQUESTS_TABLE} (request_id TEXT PRIMARY KEY, fingerprint BLOB NOT NULL,"
            " result BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
        )
        database.execute(f"CREATE INDEX {REQUESTS_TABLE}_at ON {REQUESTS_TABLE} (at)")
        if self._migrations:
            self._migrations.apply(database)

    def bring_up_to_date(self, object_key: str, database: Database) -> None:
        """Applies what is missing in one transaction: all of it or nothing.

        Raises:
            SchemaTooNew: the file has migrations that this code doesn't know.
        """
        if not self._migrations:
            return
        applied = self._applied(database, self._migrations.name)
        if applied == self._names:
            return
        if unknown := [name for name in applied if name not in self._names]:
            raise SchemaTooNew(object_key, unknown[-1], self._names[-1] if self._names else "none")
        with database.atomic():
            self._migrations.apply(database)

    @staticmethod
    def _applied(database: Database, migration_set: str) -> list[str]:
        # Not Migrations.applied(): it inspects the table with several statements, and this runs on every activation.
        table = Migrations.migrations_table
        if not database.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", [table]).fetchone():
            return []  # the class had no migrations when the file was made
        query = f"SELECT name FROM {table} WHERE migration_set = ? ORDER BY id"  # noqa: S608  a constant
        rows = database.execute(query, [migration_set])
        return [name for (name,) in rows.fetchall()]

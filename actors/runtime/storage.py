"""What does an object keep, and when is it durable?

`Storage` is an object's own database. The object reads and writes through it; the host begins and commits a transaction
around every turn. Nothing that a turn wrote is visible outside before `commit` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from actors.runtime import sqlite
from actors.runtime.alarm import StoredAlarm
from actors.runtime.connection import ObjectConnection
from actors.runtime.errors import DurableError, ObjectReset, SlotOwned, StorageFull
from actors.runtime.folder import sync_folder
from actors.runtime.key_values import KeyValues
from actors.runtime.schema import Schema


class Storage:
    """The open database of one resident object. Methods below the line are the host's."""

    def __init__(
        self,
        object_key: str,
        path: Path,
        schema: Schema,
        *,
        database_bytes_max: int = sqlite.DATABASE_BYTES_MAX,
        takes_alarms: bool = False,
        create: Callable[[Path, bytes], None] = sqlite.create,
    ) -> None:
        self._object_key = object_key
        self._takes_alarms = takes_alarms
        self._path = path
        self._transactions_open = 0
        #: The file is new, and goes again unless something is kept in it.
        self._created = not path.exists()
        #: What was committed since the file was opened is found again after a power cut.
        self._named = False
        #: The name of its log is on disk.
        self._log_named = False
        self.deleted = False
        self._rows_changed_before = 0
        self._ended = False
        try:
            if self._created:
                create(path, schema.template)
            self._connection = sqlite.connect(path, database_bytes_max)
        except (sqlite.Error, OSError) as error:
            raise self.explain(error, "open") from error
        try:
            self._connection.guard(object_key, schema.ledger)
            if not self._created:
                schema.bring_up_to_date(object_key, self._connection)
                self._connection.forget_statements()  # of the opening, which come no more
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite.Error) and (reset := self.what_it_means(error, "migrate")):
                raise reset from error
            raise
        #: For the runtime; objects use the methods below.
        self.alarm = StoredAlarm(self._connection.run_own)
        # When the turn began: another one of the object may be the handler, and wait meanwhile.
        self._alarm_was_in_flight = False

    @cached_property
    def database(self) -> Database:
        """The database as `sqlite_utils` sees it: tables, upserts, full-text search. Refuses what `sql` refuses."""
        return Database(self._connection, recursive_triggers=False)  # they are on already

    @cached_property
    def kv(self) -> KeyValues:
        """JSON values by key, where a table would be too much."""
        return KeyValues(self._connection.run_in_turn)

    def sql(self, query: str, *binds: Any) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows. The short way, for what runs on every call.

        Raises:
            StatementRefused: it would do what is the runtime's: transactions, settings, other databases, tables named
                `_mobula_*`, and changes of the ledger of migrations.
            InvalidArgument: a value that SQLite can't hold, or above `VALUE_BYTES_MAX`.
        """
        return self._connection.run(query, binds)

    def sql_many(self, query: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each of `rows`.

        Raises:
            StatementRefused, InvalidArgument: as `sql`.
        """
        self._connection.executemany(query, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undoes what was written within it if it is left by an exception. Nests. Must not hold an `await`."""
        self._transactions_open += 1
        in_flight = self.alarm.in_flight
        try:
            with self.database.atomic():
                yield
        except BaseException:
            self.alarm.in_flight = in_flight
            self.alarm.forget()
            raise
        finally:
            self._transactions_open -= 1

    def set_alarm(self, at: float) -> None:
        """Has `alarm` called at or after `at` (seconds since 1970), in place of the alarm there was. The past is now.

        Raises:
            TypeError: the class has no method `alarm`.
            InvalidArgument: no such time.
        """
        if not self._takes_alarms:
            raise TypeError(f"{self._object_key} can't take an alarm: its class has no method `alarm`")
        self._require_turn()
        self._connection.require_kept()
        self.alarm.set(at)

    def get_alarm(self) -> float | None:
        """When the next alarm is. While the handler runs: the one that it has set, if it has."""
        self._connection.require_kept()
        return self.alarm.get()

    def delete_alarm(self) -> None:
        """Takes the alarm back. Once that is committed, a handler that fails is not tried again either."""
        self._require_turn()
        self._connection.require_kept()
        self.alarm.delete()

    @property
    def size_bytes(self) -> int:
        """Size of the database, without its write-ahead log."""
        self._connection.require_kept()
        ((size_bytes,),) = self.own_sql("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return int(size_bytes)

    def delete_all(self) -> None:
        """Removes all that the object stores, this turn's writes and the alarm included.

        Its file is gone before the reply leaves. Until then, all else that the turn would do with its storage is
        refused with `StatementRefused`: it would be lost. To undo a `transaction()` around it undoes the deletion.
        """
        self._require_turn()
        # Once it is gone, what is there under its name is another object's.
        self._connection.deleting = not self.deleted

    def _require_turn(self) -> None:
        if not self._connection.in_turn:
            self._connection.refuse_outside()

    # ------------------------------------------------------------------------------------------------------------

    @property
    def connection(self) -> ObjectConnection:
        """For whoever looks into the object while no turn of it runs."""
        return self._connection

    def own_sql(self, query: str, *binds: Any) -> list[tuple[Any, ...]]:
        """As `sql`, for the runtime's own statements: the only ones that may touch its tables."""
        return self._connection.run_own(query, *binds)

    @property
    def delete_requested(self) -> bool:
        """The transaction deletes the object."""
        return self._connection.deleting

    @property
    def rows_changed(self) -> int:
        """Rows written since the file was opened, those rolled back included."""
        return 0 if self.deleted else int(self._connection.total_changes)

    @property
    def is_unwritten(self) -> bool:
        """The transaction has written no row, so that its commit waits for no disk."""
        return self.rows_changed == self._rows_changed_before

    @property
    def in_transaction(self) -> bool:
        try:
            return bool(self._connection.in_transaction)
        except sqlite.Error:
            return False  # the object closed the connection

    @property
    def in_transaction_block(self) -> bool:
        """The object is within `transaction()`."""
        return self._transactions_open > 0

    def alarm_is_in_flight(self) -> None:
        """The handler begins, in this transaction: what of it is undone leaves the alarm in flight."""
        self.alarm.in_flight = self._alarm_was_in_flight = True
        self.alarm.last_set = None

    def begin(self) -> None:
        """
        Raises:
            ObjectReset: this storage can't be used any more.
        """
        if self._ended:
            raise ObjectReset(self._object_key, "it was ended while the turn was under way")
        try:
            if not self.deleted:
                self._connection.run_own("BEGIN")
            self._connection.in_turn = True
            self._rows_changed_before = self.rows_changed
            self._alarm_was_in_flight = self.alarm.in_flight
        except sqlite.Error as error:
            raise self.explain(error, "begin") from error

    def savepoint(self) -> None:
        self._connection.run_own("SAVEPOINT _mobula_turn")
        self._alarm_was_in_flight = self.alarm.in_flight

    def release(self) -> None:
        self._connection.run_own("RELEASE _mobula_turn")

    def rollback_to_savepoint(self) -> None:
        """Undoes one turn; what earlier turns of the same transaction wrote stays."""
        self._connection.deleting = False
        self._forget_alarm()
        self._connection.run_own("ROLLBACK TO _mobula_turn")
        self._connection.run_own("RELEASE _mobula_turn")

    def rollback(self) -> None:
        self._connection.deleting = self._connection.in_turn = False
        self._forget_alarm()
        self.alarm.changed = False
        # Some errors make SQLite roll back by itself.
        if not self.deleted and self.in_transaction:
            self._connection.run_own("ROLLBACK")

    def _forget_alarm(self) -> None:
        self.alarm.forget()
        self.alarm.in_flight = self._alarm_was_in_flight

    def commit(self) -> None:
        """Makes the transaction durable, or, after `delete_all`, removes the file.

        Raises:
            ObjectReset, StorageFull: nothing of the transaction was kept, and this storage can't be used any more.
        """
        try:
            if self.delete_requested:
                self._connection.close()
                sqlite.remove(self._path)
                self._connection.deleting, self.deleted, self._created = False, True, False
                self.alarm.is_gone()
            elif not self.deleted:
                self._connection.run_own("COMMIT")
                if not self._named:
                    self._sync_names()
            self._connection.in_turn = False
        except (sqlite.Error, OSError) as error:
            if self.delete_requested:
                # Also on a full disk: part of it may be gone, which `StorageFull` would deny.
                raise ObjectReset(self._object_key, f"delete failed: {error}") from error
            raise self.explain(error, "commit") from error

    def end_unchanged(self) -> None:
        """Ends a transaction that has changed no row. Tables may have been made, and are kept.

        Raises:
            ObjectReset, StorageFull: as `commit`.
        """
        try:
            self._connection.run_own("COMMIT")
            if not self._named:
                self._sync_names()
            self._connection.in_turn = False
        except (sqlite.Error, OSError) as error:
            raise self.explain(error, "commit") from error

    def rest(self) -> None:
        """Gives back memory that the next turn takes again. The file stays open, and locked."""
        self._connection.rest()

    def folder_was_synced(self) -> None:
        """By somebody else, just now: what had a name by then is found again after a power cut."""
        self._log_named = sqlite.wal_of(self._path).exists()

    def require_kept(self) -> None:
        """
        Raises:
            RuntimeError: the transaction deletes the object, which would be made again by what it starts for.
        """
        if self.delete_requested:
            raise RuntimeError("an object can't delete itself while it starts; an alarm or a method may")

    def end(self) -> None:
        """Whoever still has it, and goes on, begins nothing any more: not even what needs no file, once it is gone."""
        self._ended = True

    def close(self) -> None:
        """Closes the file. A file that this storage created, and in which nothing is kept, is removed again."""
        self._connection.close()
        if self._created:
            sqlite.remove(self._path)

    def _sync_names(self) -> None:
        """With the first commit since the file was opened: its log is new then, and perhaps the file itself.

        SQLite syncs their folder as well, but acknowledges a commit also if that fails.

        Raises:
            ObjectReset: not `StorageFull`, which would deny that the log may be found.
        """
        if not sqlite.is_logged(self._path):
            return  # nothing was written
        try:
            if not self._log_named:
                sync_folder(self._path.parent)
        except OSError as error:
            raise ObjectReset(self._object_key, f"commit failed: {error}") from error
        self._named, self._created = True, False

    def what_it_means(self, error: Exception, operation: str = "write") -> DurableError | None:
        """The error to reset the object with, or None where only the statement failed."""
        lost = self._connection.lost
        error = lost or error
        if self.deleted and isinstance(error, sqlite.Error):
            return ObjectReset(self._object_key, "it was deleted while the turn was under way")
        if sqlite.is_full(error) or sqlite.critical(error):
            return self.explain(error, operation)
        return ObjectReset(self._object_key, f"its transaction was ended by: {lost}") if lost else None

    def explain(self, error: Exception, operation: str) -> DurableError:
        """What to tell callers of an error of the disk or the driver."""
        if sqlite.is_busy(error):
            return SlotOwned(self._object_key, "another process that has its database open")
        if sqlite.is_full(error):
            return StorageFull(self._object_key, operation)
        return ObjectReset(self._object_key, f"{operation} failed: {sqlite.critical(error) or error}")

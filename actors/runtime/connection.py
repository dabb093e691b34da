"""How do statements reach an object's database, the author's and the runtime's?

An `ObjectConnection` runs an author's statements under an `Authorizer`, whether they come through `run` or through
`sqlite_utils`, and says what was refused and why. The runtime's own go through `run_own` and may do anything.

A prepared statement is kept by its text and not asked about again. So the runtime's carry a secret: no author's
statement has the same text, and gets what was prepared for the runtime. The connection keeps them itself, to let them
go when it is used no more for a while: the driver has no way to say so.

Sizes of values are checked where they come in. What a statement makes of them (`zeroblob`, `||`, `group_concat`) is
limited by SQLite, as `sqlite_limit` has it, and so is the depth of its expressions, as SQLite comes.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from sqlite_utils.utils import sqlite3

from actors.runtime.authorizer import Authorizer
from actors.runtime.errors import InvalidArgument, ObjectReset, StatementRefused

#: One bound value. Larger ones belong into files: each read of one blocks all objects of the host.
VALUE_BYTES_MAX = 16 * 1024 * 1024
#: One row, and whatever a statement makes in memory: a few values of the largest size.
ROW_BYTES_MAX = 4 * VALUE_BYTES_MAX
#: Elements of at most 8 bytes: what has fewer than these fits, whatever they are.
_FITS = VALUE_BYTES_MAX // 8

_SQLITE_TOOBIG = 18

#: Prepared statements kept by one connection.
STATEMENTS_MAX = 100
#: The fewest that the driver keeps besides, or instead if there is no way to.
DRIVER_STATEMENTS_MAX = 5
# Statements that do nothing and take next to nothing: as many of them leave the driver no room for others, but for
# those that run many times in a row.
_NOTHINGS = tuple(" " * number for number in range(DRIVER_STATEMENTS_MAX))

# The last does nothing else where the schema can't be written to anyway.
_GIVE_BACK = "PRAGMA shrink_memory; PRAGMA writable_schema = RESET"

#: What no statement of an author holds.
_SECRET = secrets.token_hex(8)

# As a tuple: a union would be made anew for each value.
_SIZED = (str, bytes, bytearray, memoryview)
_NO_BINDS: tuple[Any, ...] = ()
# How `Database.atomic` of sqlite-utils ends its blocks.
_BLOCK_END = re.compile(r"(RELEASE|ROLLBACK TO) SAVEPOINT sqlite_utils_[0-9a-f]{32};?")
_Failures = (sqlite3.Error, UnicodeEncodeError, OverflowError)


class ObjectConnection(sqlite3.Connection):
    """A connection that is an object's from `guard` on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._object_key = ""
        self._authorizer = Authorizer()
        #: By their texts.
        self._statements: dict[str, Any] = {}
        self._nothing = super().__call__("")
        # Kept, as the driver keeps a weak reference to each that was ever made. None while it is in use.
        self._cursor: sqlite3.Cursor | None = None
        #: A transaction is open, or ought to be.
        self.in_turn = False
        #: The object is deleted with this transaction, and all that the author still did in it would be lost.
        self.deleting = False
        #: What ended the transaction before its time. Nothing runs any more: it would be committed by itself.
        self.lost: Exception | None = None

    def guard(self, object_key: str, ledger: str) -> None:
        """From here on it is the object's, and statements need leave.

        Args:
            object_key: for errors.
            ledger: the table that says which migrations were applied.
        """
        self._object_key = object_key
        self._authorizer.ledger = ledger.lower()
        super().set_authorizer(self._authorizer)

    @contextmanager
    def migrating(self) -> Iterator[None]:
        """Within it the ledger of migrations may be changed."""
        self._authorizer.migrates = True
        try:
            yield
        finally:
            self._authorizer.migrates = False
            # What was prepared meanwhile is asked about again, should the same text come once more.
            super().set_authorizer(self._authorizer)

    # -- statements

    def run(self, query: str, binds: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Runs one statement of the author and returns its rows.

        Raises:
            StatementRefused: the statement would do what is the runtime's.
            InvalidArgument: a value that SQLite can't hold.
            ObjectReset: an earlier statement ended the transaction.
        """
        self.admit(query, binds)
        try:
            return self._run(query, binds)
        except _Failures as error:
            self.explain(error)

    def run_own(self, query: str, *binds: Any) -> list[tuple[Any, ...]]:
        """Runs one statement of the runtime and returns its rows.

        Raises:
            InvalidArgument: a value that SQLite can't hold.
        """
        authorizer = self._authorizer
        authorizer.refused = None
        authorizer.trusted = True
        try:
            return self._run(_own_text(query), binds)
        except _Failures as error:
            self.explain(error)
        finally:
            authorizer.trusted = False

    def _run(self, text: str, binds: Sequence[Any]) -> list[tuple[Any, ...]]:
        # Not `self.execute`: that makes a cursor for each, for twice the price.
        cursor, self._cursor = self._cursor, None
        if cursor is None:  # the first, or within another: a function that SQL calls may run some
            cursor = super().cursor(sqlite3.Cursor)
            cursor.row_factory = None
        try:
            rows: list[tuple[Any, ...]] = cursor.execute(text, binds).fetchall()
        finally:
            self._cursor = cursor
        return rows

    def __call__(self, text: str, /) -> Any:
        """The prepared statement of a text that the driver does not have."""
        statement = self._statements.get(text)
        if statement is None:
            statement = super().__call__(text)
            if len(self._statements) >= STATEMENTS_MAX:
                del self._statements[next(iter(self._statements))]
            self._statements[text] = statement
        return statement

    def crowd_driver(self) -> None:
        """Leaves the driver no statement to keep but the one that runs last."""
        self._statements.update(dict.fromkeys(_NOTHINGS, self._nothing))
        for nothing in _NOTHINGS:
            self._run(nothing, _NO_BINDS)

    def forget_statements(self) -> None:
        """Lets go of what is prepared. It is prepared again when it is used again."""
        self._statements.clear()

    def rest(self) -> None:
        """Gives back what only makes the next statements faster: what is prepared, pages that were read, the schema."""
        self.crowd_driver()
        self.forget_statements()
        self._authorizer.trusted = True
        try:
            assert self._cursor is not None
            self._cursor.executescript(_GIVE_BACK)
        finally:
            self._authorizer.trusted = False

    def run_in_turn(self, query: str, *binds: Any) -> list[tuple[Any, ...]]:
        """As `run_own`, for what an author has the runtime do.

        Raises:
            StatementRefused: it is not the code of a turn that asks for it.
        """
        if not self.in_turn:
            self.refuse_outside()
        self.require_kept()
        return self.run_own(query, *binds)

    def refuse_outside(self) -> NoReturn:
        """For what runs between turns, or between two steps of one."""
        # It would be committed by itself, statement by statement, and in no order with the index of alarms.
        why = "only the code of a turn may, and no task or thread that it has started"
        raise StatementRefused(self._object_key, "use its storage now", why)

    def require_kept(self) -> None:
        """
        Raises:
            StatementRefused: the transaction deletes the object.
        """
        if self.deleting:
            raise StatementRefused(self._object_key, "use its storage now", "the object is deleted with this turn")

    def _admit_while_deleting(self, query: str) -> None:
        end = _BLOCK_END.fullmatch(query)
        if end is None:
            self.require_kept()
        elif end[1] == "ROLLBACK TO":
            # No block can be begun any more: this one was before, and what is undone with it is the deletion too.
            self.deleting = False

    def admit(self, query: str, binds: Any) -> None:
        if not self.in_turn and self._object_key:
            self.refuse_outside()
        if self.deleting:
            self._admit_while_deleting(query)
        self._authorizer.statement = query
        self._authorizer.refused = None
        for value in binds:
            if isinstance(value, _SIZED) and len(value) > _FITS:
                _require_size(value)

    def explain(self, error: Exception) -> NoReturn:
        """Raises what an error of the driver means, or the error itself."""
        if isinstance(error, UnicodeEncodeError):
            # These two come out of JSON, so that clients can send them.
            raise InvalidArgument("value", error.object, "must be text without lone surrogates") from error
        if isinstance(error, OverflowError):
            raise InvalidArgument("value", "a larger one", "a whole number must fit into 64 bits") from error
        if self.lost is not None:
            raise ObjectReset(self._object_key, f"its transaction was ended by: {self.lost}") from error
        if self._authorizer.refused is not None:
            raise StatementRefused(self._object_key, *self._authorizer.refused) from error
        if getattr(error, "sqlite_errorcode", None) == _SQLITE_TOOBIG:
            raise InvalidArgument(
                "value", "a larger one", f"text, blob or row must take at most {ROW_BYTES_MAX} bytes"
            ) from error
        if self.in_turn and not self.in_transaction:
            # By an OR ROLLBACK or RAISE (ROLLBACK), or by SQLite itself, on a disk that failed.
            self.lost = error
            super().set_authorizer(_refuse_all)
        raise error

    def close(self) -> None:
        # It holds the connection, which would never be freed.
        self._cursor = None
        self._statements.clear()
        super().close()

    # -- what sqlite-utils, and authors who know the driver, use

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or AuthorsCursor)

    def commit(self) -> None:
        try:
            super().commit()
        except sqlite3.Error as error:
            self.explain(error)

    def rollback(self) -> None:
        try:
            super().rollback()
        except sqlite3.Error as error:
            self.explain(error)

    def set_authorizer(self, authorizer_callback: object) -> NoReturn:
        raise StatementRefused(self._object_key, "set an authorizer", "the runtime's is the one that counts")

    def enable_load_extension(self, enable: bool, /) -> NoReturn:
        raise StatementRefused(self._object_key, "load extensions", "they are native code, and would run in its host")

    def blobopen(self, *arguments: Any, **options: Any) -> NoReturn:
        raise StatementRefused(self._object_key, "open a blob", "it would get around the authorizer")

    #: The same in pysqlite3.
    open_blob = blobopen


class AuthorsCursor(sqlite3.Cursor):
    """What `execute` of a connection goes through. Refuses, and says why, as `ObjectConnection.run` does."""

    connection: ObjectConnection

    def execute(self, sql: str, parameters: Any = _NO_BINDS, /) -> Any:
        self.connection.admit(sql, parameters.values() if isinstance(parameters, Mapping) else parameters)
        try:
            return super().execute(sql, parameters)
        except _Failures as error:
            self.connection.explain(error)

    def executemany(self, sql: str, seq_of_parameters: Iterable[Any], /) -> Any:
        try:
            return super().executemany(sql, self._admitted(sql, seq_of_parameters))
        except _Failures as error:
            self.connection.explain(error)

    def executescript(self, sql_script: str, /) -> Any:
        self.connection.admit(sql_script, _NO_BINDS)
        try:
            return super().executescript(sql_script)
        except _Failures as error:
            self.connection.explain(error)

    def _admitted(self, sql: str, rows: Iterable[Any]) -> Iterator[Any]:
        self.connection.admit(sql, _NO_BINDS)
        for row in rows:
            self.connection.admit(sql, row.values() if isinstance(row, Mapping) else row)
            yield row


@functools.lru_cache(maxsize=1000)
def _own_text(query: str) -> str:
    # Kept, a text keeps the hash that its prepared statement is found by. The secret is in front: SQLite keeps the text
    # of a table from its first word on, and it must be the same in every file.
    return f"/* own {_SECRET} */ {query}"


def _refuse_all(*_: object) -> int:
    return sqlite3.SQLITE_DENY


def _require_size(value: str | bytes | bytearray | memoryview) -> None:
    if isinstance(value, str):
        size_bytes = len(value.encode(errors="surrogatepass"))
    elif isinstance(value, memoryview):
        size_bytes = value.nbytes
    else:
        size_bytes = len(value)
    if size_bytes > VALUE_BYTES_MAX:
        raise InvalidArgument("value", f"{size_bytes} bytes", f"must take at most {VALUE_BYTES_MAX} bytes")

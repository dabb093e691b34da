"""Which statements may an author run on an object's database?

SQLite asks an `Authorizer` about each thing that a statement would do, once, while it is prepared. All of it is
allowed but what would break the promises of the runtime: other databases, settings, transactions of the author's own,
and the runtime's own tables, be it through a view or a trigger. The ledger of migrations, which decides what the next
activation applies, may be read.

It guards against mistakes, and against SQL that came from elsewhere. It is no sandbox: Python code in the same process
can get around it.
"""

from __future__ import annotations

import functools
import re

from sqlite_utils.utils import sqlite3

#: Names of tables and the like with this prefix are the runtime's own.
RESERVED_PREFIX = "_mobula_"

# Those that sqlite-utils needs are among them.
_PRAGMAS_TO_READ = frozenset(
    {
        "application_id",
        "auto_vacuum",
        "cache_size",
        "collation_list",
        "compile_options",
        "data_version",
        "defer_foreign_keys",
        "encoding",
        "foreign_keys",
        "freelist_count",
        "function_list",
        "journal_mode",
        "legacy_alter_table",
        "locking_mode",
        "max_page_count",
        "module_list",
        "page_count",
        "page_size",
        "pragma_list",
        "recursive_triggers",
        "schema_version",
        "synchronous",
        "table_list",
        "trusted_schema",
        "user_version",
        "wal_autocheckpoint",
    }
)
# Their argument names what is asked for, or is a setting that harms nothing and is the author's to choose.
_PRAGMAS_WITH_ARGUMENT = frozenset(
    {
        "defer_foreign_keys",
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "legacy_alter_table",
        "optimize",
        "quick_check",
        "recursive_triggers",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
_SAVEPOINTS = re.compile(r"sqlite_utils_([0-9a-f]{32}|query)")
# Tables that show raw pages, and the runtime's tables with them, or the text of other statements.
_TABLES_REFUSED = frozenset({"sqlite_dbpage", "sqlite_stmt"})

_WRITES = frozenset({sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE})
# The last two change nothing that is stored in a table, whosever it is.
_HARMLESS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_ANALYZE, sqlite3.SQLITE_REINDEX})


class Authorizer:
    """Decides for one connection. What it refused is in `refused`: SQLite's own error does not tell."""

    __slots__ = ("ledger", "migrates", "refused", "statement", "trusted")

    def __init__(self) -> None:
        #: The table, in lower case, that says which migrations were applied.
        self.ledger = ""
        #: They are being applied.
        self.migrates = False
        #: What runs now is the runtime's.
        self.trusted = False
        #: The text of what runs now.
        self.statement = ""
        #: What that wanted to do, and why it may not; None while nothing was refused.
        self.refused: tuple[str, str] | None = None

    def __call__(
        self, action: int, first: str | None, second: str | None, database: str | None, inside: str | None
    ) -> int:
        if self.trusted or action in _HARMLESS:
            return sqlite3.SQLITE_OK
        reads = action == sqlite3.SQLITE_READ
        refused = _refuse_names(first or "") if reads else self._refuse(action, first or "", second)
        if refused is None:
            return sqlite3.SQLITE_OK
        self.refused = refused
        return sqlite3.SQLITE_DENY

    def _refuse(self, action: int, first: str, second: str | None) -> tuple[str, str] | None:
        if action in _WRITES:
            return _refuse_names(first) or self._refuse_ledger(first)
        if action == sqlite3.SQLITE_FUNCTION:
            loads = second is not None and second.lower() == "load_extension"
            return ("call load_extension", "extensions are native code, and would run in its host") if loads else None
        if action == sqlite3.SQLITE_PRAGMA:
            return _refuse_pragma(first.lower(), second)
        if action == sqlite3.SQLITE_TRANSACTION:
            return first, "every turn is one transaction, and the runtime's; storage.transaction() nests another"
        if action == sqlite3.SQLITE_SAVEPOINT:
            if _SAVEPOINTS.fullmatch(second or ""):
                return None
            return f"use SAVEPOINT {second}", "storage.transaction() does that, and can't be left open"
        if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
            return "attach or detach a database", "an object has one, its own"
        if action == sqlite3.SQLITE_ALTER_TABLE:
            # SQLite asks with the old name of a table only. Its statement can't hide the new one.
            statement = self.statement.lower()
            if RESERVED_PREFIX in statement:
                return _reserved(RESERVED_PREFIX + "*")
            if self.ledger in statement:
                return self._refuse_ledger(self.ledger)
        # Creating and dropping of all kinds; one is the thing's name and the other its table's.
        return _refuse_names(first, second or "") or self._refuse_ledger(first, second or "")

    def _refuse_ledger(self, *names: str) -> tuple[str, str] | None:
        if self.migrates or self.ledger not in [name.lower() for name in names]:
            return None
        return f"change {self.ledger}", "it says which migrations were applied, and only applying them changes it"


# Kept: each statement that is prepared asks of each column that it has, and most are of a few tables.
@functools.lru_cache(maxsize=1000)
def _refuse_names(*names: str) -> tuple[str, str] | None:
    for name in names:
        lowered = name.lower()
        if lowered.startswith(RESERVED_PREFIX) or lowered in _TABLES_REFUSED:
            return _reserved(name)
    return None


def _reserved(name: str) -> tuple[str, str]:
    return f"touch {name}", f"that, and all names with {RESERVED_PREFIX}, are the runtime's own"


def _refuse_pragma(name: str, argument: str | None) -> tuple[str, str] | None:
    if name in _PRAGMAS_WITH_ARGUMENT or (argument is None and name in _PRAGMAS_TO_READ):
        return None
    used = f"PRAGMA {name}" if argument is None else f"PRAGMA {name} = {argument}"
    return f"use {used}", "the settings of its database are the runtime's; what reads is allowed"

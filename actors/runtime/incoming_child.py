"""A program: looks whether a database from outside is whole, and one of its class.

It is started by `incoming`, through `limited`. The file is anybody's, and SQLite runs what stands in it: the conditions
of its tables while it is checked, computed columns when they are read. It can hold up nobody but this process.

What a file of the class looks like comes with the question, from `schema`, so that no code of the class is loaded.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import closing
from typing import Any

# Order matters: exclusive mode before the first access keeps the index of a log in memory, without a -shm file.
_SETUP = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = MEMORY;
PRAGMA trusted_schema = OFF;
"""


class _Refused(Exception):
    def __init__(self, value: Any, problem: str) -> None:
        super().__init__(value, problem)
        self.value = value
        self.problem = problem


def main() -> None:
    asked = json.load(sys.stdin)
    driver = importlib.import_module(asked["driver"])
    print(flush=True)  # noqa: T201  its time begins
    try:
        with closing(driver.connect(asked["uri"], uri=True, isolation_level=None, timeout=0)) as connection:
            connection.executescript(_SETUP)
            answer = _Check(connection, asked["class"]).answer(asked["page_bytes"], is_new=asked["is_new"])
    except _Refused as refused:
        answer = {"refused": [refused.value, refused.problem]}
    except MemoryError:
        answer = {"memory": True}
    except driver.Error as error:
        answer = {
            "code": getattr(error, "sqlite_errorcode", 0),
            "type": type(error).__name__,
            "message": str(error),
        }
    json.dump(answer, sys.stdout, default=repr)


class _Check:
    def __init__(self, connection: Any, of_class: dict[str, Any]) -> None:
        self._connection = connection
        self._class = of_class
        self._applied: list[Any] = []

    def answer(self, page_bytes: int, *, is_new: bool) -> dict[str, Any]:
        """When its alarm is due, or that it is not up to date.

        Args:
            page_bytes: what its pages have to be.
            is_new: it has not been checked before.
        """
        if is_new:
            self._require_sound(page_bytes)
        self._require_class()
        applied, names = self._applied, self._class["names"]
        ((version,),) = self._rows("PRAGMA user_version")
        if version > self._class["version"]:
            return {"too_new": [f"runtime {version}", f"runtime {self._class['version']}"]}
        if unknown := [name for name in applied if name not in names]:
            return {"too_new": [str(unknown[-1]), names[-1] if names else "none"]}
        if applied != names or version != self._class["version"]:
            return {"is_older": True}
        if changed := self._rows_of("own") ^ self._made("own"):
            raise _Refused(_first_name(changed), "has changed tables of the runtime's")
        alarm_at = self._alarm_at()
        # What an export is not, so that it is one file that any SQLite opens.
        self._rows("PRAGMA journal_mode = WAL")
        return {"alarm_at": alarm_at}

    def _require_sound(self, wanted: int) -> None:
        ((page_bytes,),) = self._rows("PRAGMA page_size")
        if page_bytes != wanted:
            raise _Refused(page_bytes, f"must have pages of {wanted} bytes")
        ((said,), *_) = self._rows("PRAGMA integrity_check(1)")
        if said != "ok":
            raise _Refused(said, "is damaged")

    def _require_class(self) -> None:
        tables = {name for (name,) in self._rows("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if not set(self._class["tables"]) <= tables:
            raise _Refused("another", "was not made by a durable object")
        # First: whatever is read may be a view.
        if programs := self._rows_of("programs") - self._made("programs"):
            raise _Refused(_first_name(programs), "has a view or a trigger that its class does not make")
        migrations = self._class["migrations_table"]
        if migrations in tables:
            # It is read with every activation, and what its columns compute would run then.
            if self._rows("SELECT 1 FROM pragma_table_xinfo(?) WHERE hidden <> 0", migrations):
                raise _Refused(migrations, "has changed tables of the runtime's")
            if found := self._rows(self._class["others_sql"], self._class["set"]):
                raise _Refused(found[0][0], "is of another class: it has other migrations")
            if self._class["set"] is not None:
                self._applied = [name for (name,) in self._rows(self._class["applied_sql"], self._class["set"])]
        if self._class["names"] and not self._applied:
            raise _Refused("none", "is of another class: it has none of its migrations")

    def _alarm_at(self) -> float | None:
        rows = self._rows(self._class["alarm_sql"])
        if not rows:
            return None
        try:  # SQLite keeps any value in a column of any type
            at, _, _ = float(rows[0][0]), float(rows[0][1]), int(rows[0][2])
        except (TypeError, ValueError, OverflowError):
            at = -1.0
        if not 0 <= at <= self._class["alarm_at_max"]:
            raise _Refused("its alarm", "has an alarm at no time")
        return at

    def _rows_of(self, what: str) -> frozenset[tuple[Any, ...]]:
        return frozenset(self._rows(self._class[f"{what}_sql"]))

    def _made(self, what: str) -> frozenset[tuple[Any, ...]]:
        return frozenset(map(tuple, self._class[what]))

    def _rows(self, sql: str, *binds: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, binds).fetchall()
        return rows


def _first_name(rows: frozenset[tuple[Any, ...]]) -> str:
    return min(str(row[1]) for row in rows)


if __name__ == "__main__":
    main()

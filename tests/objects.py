"""Durable classes for the tests, importable by the workers of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import AlarmInfo, DurableObject, exactly_once, idempotent, read
from actors.runtime.object import ObjectContext

GATE_TIMEOUT_S = 20.0

migrations = Migrations("notebook")


@migrations()
def create_tables(database: Database) -> None:
    database.execute("CREATE TABLE line (number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL)")
    database.execute("CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    database.execute("CREATE TABLE remark (about TEXT NOT NULL REFERENCES note (key))")


class FieldsLost(Exception):
    """Pickles, and can't be read back: the constructor wants more than what `Exception` was given."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


class Refusal(Exception):
    """An author's own error, with fields."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code


class Unprintable(Exception):
    """Neither pickles nor prints."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise ValueError("no words")


class Unpicklable:
    """A value that can't leave its process."""

    def __reduce__(self) -> str:
        raise TypeError("this can't be pickled")


class Notebook(DurableObject):
    """Lines in the order in which they were written, and notes by key."""

    migrations = migrations

    def __init__(self, context: ObjectContext) -> None:
        super().__init__(context)
        self._incarnation = secrets.token_hex(8)

    # -- what well-behaved methods do

    def add(self, text: str) -> int:
        self.storage.sql("INSERT INTO line (text) VALUES (?)", text)
        ((number,),) = self.storage.sql("SELECT last_insert_rowid()")
        return int(number)

    @exactly_once
    def append(self, text: str) -> int:
        return self.add(text)

    @exactly_once
    def append_all(self, texts: list[str], notes: dict[str, Any]) -> int:
        """Returns the number of the last."""
        return [self.add(text) for text in texts][-1]

    @idempotent
    def put(self, key: str, value: str) -> None:
        self.storage.sql("INSERT INTO note VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", key, value)

    @read
    def get(self, key: str) -> str | None:
        rows = self.storage.sql("SELECT value FROM note WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    @read
    def notes(self) -> dict[str, str]:
        return dict(self.storage.sql("SELECT key, value FROM note"))

    @read
    def lines(self) -> list[str]:
        return [text for (text,) in self.storage.sql("SELECT text FROM line ORDER BY number")]

    @read
    def incarnation(self) -> str:
        """Another one after each activation."""
        return self._incarnation

    @read
    def pid(self) -> int:
        return os.getpid()

    @read
    def pragma(self, name: str) -> Any:
        ((value,),) = self.storage.sql(f"PRAGMA {name}")
        return value

    def erase(self) -> None:
        self.storage.delete_all()

    def add_and_erase(self, text: str) -> None:
        self.add(text)
        self.storage.delete_all()

    def add_twice_and_undo_the_second(self, text: str) -> None:
        self.add(text)
        try:
            with self.storage.transaction():
                self.add(f"{text} again")
                raise Refusal("undo", 0)
        except Refusal:
            pass

    async def add_in_steps(self, *texts: str) -> list[int]:
        numbers = []
        for text in texts:
            numbers.append(self.add(text))
            await asyncio.sleep(0)
        return numbers

    async def add_around_gate(self, text: str, gate: Path) -> str:
        """Writes, waits until the file `gate` is there, and writes again."""
        self.add(f"{text} before")
        await self._gate(gate)
        self.add(f"{text} after")
        return text

    # -- what others do

    def add_and_raise(self, text: str, error: Exception) -> None:
        self.add(text)
        raise error

    def add_and_raise_unprintable(self, text: str) -> None:
        self.add(text)
        raise Unprintable

    def add_and_raise_what_loses_fields(self, text: str) -> None:
        self.add(text)
        raise FieldsLost("first", "second")

    def add_and_return_unpicklable(self, text: str) -> Unpicklable:
        self.add(text)
        return Unpicklable()

    async def add_and_return_unpicklable_later(self, text: str) -> Unpicklable:
        self.add(text)
        return Unpicklable()

    @exactly_once
    def append_and_raise(self, text: str) -> None:
        self.add(text)
        raise Refusal("never", 1)

    @read
    def read_and_write(self, text: str) -> None:
        self.add(text)

    @read
    async def read_and_write_later(self, text: str) -> None:
        await asyncio.sleep(0)
        self.add(text)

    @read
    def read_and_erase(self) -> None:
        self.storage.delete_all()

    def erase_and_raise(self) -> None:
        self.storage.delete_all()
        raise Refusal("kept", 2)

    def erase_and_undo(self) -> None:
        try:
            with self.storage.transaction():
                self.storage.delete_all()
                raise Refusal("undo", 0)
        except Refusal:
            pass

    def remark_on_nothing(self) -> None:
        self.storage.sql("INSERT INTO remark VALUES ('no such note')")

    def roll_back_by_conflict(self, text: str) -> None:
        self.add(text)
        self.storage.sql("INSERT INTO note VALUES ('k', '1')")
        self.storage.sql("INSERT OR ROLLBACK INTO note VALUES ('k', '2')")

    def roll_back_by_conflict_and_go_on(self, text: str) -> None:
        with contextlib.suppress(Exception):
            self.roll_back_by_conflict(text)
        with contextlib.suppress(Exception):
            self.add(f"{text} afterwards")

    def close_storage(self) -> None:
        self.storage.database.conn.close()

    def leave_process(self) -> None:
        self.add("leaving")
        raise SystemExit(3)

    async def leave_process_later(self) -> None:
        await asyncio.sleep(0)
        self.add("leaving")
        raise SystemExit(3)

    def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    async def hold_transaction(self, text: str) -> None:
        with self.storage.transaction():
            self.add(text)
            await asyncio.sleep(0)
            self.add(f"{text} later")

    async def add_in_finally(self, text: str) -> None:
        try:
            self.add(text)
            await asyncio.sleep(0)
        finally:
            self.add(f"{text} finally")

    async def roll_back_by_conflict_later(self, text: str) -> None:
        await asyncio.sleep(0)
        self.roll_back_by_conflict(text)

    def fill(self, size_bytes: int) -> None:
        self.storage.sql("INSERT INTO line (text) VALUES (?)", "x" * size_bytes)

    @staticmethod
    def helper() -> str:
        return "no object"

    def _private(self) -> str:
        return "not for stubs"

    async def _gate(self, gate: Path) -> None:
        give_up_s = time.monotonic() + GATE_TIMEOUT_S
        while not gate.exists():
            if time.monotonic() > give_up_s:
                raise TimeoutError
            await asyncio.sleep(0.005)


class Ledger(Notebook):
    """The same under another name: another class of objects, with files of its own."""


class AlarmClock(DurableObject):
    """Touches a file when its alarm is due, so that a test need not call it."""

    def ring_at(self, at: float, bell: Path) -> None:
        self.storage.kv.put("bell", str(bell))
        self.storage.set_alarm(at)

    @read
    def pid(self) -> int:
        return os.getpid()

    async def alarm(self, info: AlarmInfo) -> None:
        await asyncio.to_thread(Path(self.storage.kv.get("bell")).touch)

    async def ask(self, other: str) -> int:
        """The number of the process that another of its kind runs in."""
        return int(await self.objects.namespace(AlarmClock).get(self.id.tenant, other).pid())


class Poison(DurableObject):
    """Ends the process of its host: when it is told to, or for as long as a file, the trap, is there."""

    def start(self) -> None:
        self._spring("start")

    def set_trap(self, where: str, trap: Path) -> None:
        """
        Args:
            where: "start", "alarm" or "touch".
            trap: while it is there the object crashes in that place.
        """
        self.storage.kv.put(f"trap/{where}", str(trap))

    def crash(self) -> None:
        os._exit(1)

    @idempotent
    def touch(self) -> int:
        self._spring("touch")
        return os.getpid()

    @idempotent
    def ring_now(self) -> None:
        self.storage.set_alarm(self.clock.now())

    @read
    def rang(self) -> int:
        return int(self.storage.kv.get("rang") or 0)

    def alarm(self, info: object) -> None:
        self._spring("alarm")
        self.storage.kv.put("rang", self.rang() + 1)

    def _spring(self, where: str) -> None:
        trap = self.storage.kv.get(f"trap/{where}")
        if trap is not None and Path(str(trap)).exists():
            os._exit(1)


def gate_in(folder: Path) -> tuple[Path, Callable[[], None]]:
    """A gate for `add_around_gate`, and what opens it."""
    gate = folder / f"gate-{secrets.token_hex(4)}"
    return gate, gate.touch

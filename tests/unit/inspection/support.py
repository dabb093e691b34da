"""What do tests of looking at objects, and after them, have in common?"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors import LocalBackend, Operator
from actors.runtime import DurableObject
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.object_id import ObjectId
from actors.runtime.object_info import ObjectInfo
from actors.runtime.sqlite import wal_of
from tests.objects import Ledger, Notebook, gate_in

NOW = 1_700_000_000.0
SETTINGS = HostSettings(slots=16)
MADE: list[str] = []
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
ANOTHERS = "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('growing', 'first', '')"

old_steps = Migrations("growing")
steps = Migrations("growing")


@old_steps()
@steps()
def first(database: Database) -> None:
    database.execute("CREATE TABLE thing (name TEXT)")


@steps()
def second(database: Database) -> None:
    if next(database.query("SELECT count(*) AS n FROM thing WHERE name = 'fails'"))["n"]:
        raise ValueError("this one can't be brought up to date")
    database.execute("ALTER TABLE thing ADD COLUMN size INTEGER")


class Growing(DurableObject):
    migrations = steps

    def start(self) -> None:
        MADE.append(self.id.name)

    def add(self, name: str) -> None:
        self.storage.sql("INSERT INTO thing (name) VALUES (?)", name)


class Endless(DurableObject):
    """Has turns that never end, however they are asked to."""

    async def hang(self, text: str) -> None:
        self.storage.kv.put("text", text)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    async def hang_alone(self) -> None:
        await self.block_concurrency_while(lambda: self.hang("alone"))

    async def erase_and_hang(self) -> None:
        self.storage.delete_all()
        await self._hang_and_erase()

    async def erase_and_hang_alone(self) -> None:
        await self.block_concurrency_while(self.erase_and_hang)

    async def _hang_and_erase(self) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            with contextlib.suppress(Exception):
                self.storage.delete_all()
            with contextlib.suppress(Exception):
                self.storage.kv.put("text", "of a turn that was ended")

    def ring_now(self) -> None:
        self.storage.set_alarm(self.clock.now())

    async def alarm(self, info: object) -> None:
        await self.hang("alarm")

    def put(self, text: str) -> None:
        self.storage.kv.put("text", text)

    def text(self) -> str | None:
        found: str | None = self.storage.kv.get("text")
        return found


GrowingBefore = type("Growing", (Growing,), {"migrations": old_steps, "__module__": __name__})


def notebook(name: str, tenant: str = "acme") -> ObjectId:
    return ObjectId("Notebook", tenant, name)


async def write(backend: LocalBackend, *ids: ObjectId, text: str = "a line", asleep: bool = True) -> None:
    classes = {"Notebook": Notebook, "Ledger": Ledger}
    for object_id in ids:
        await backend.namespace(classes[object_id.class_name]).get(object_id.tenant, object_id.name).add(text)
        if asleep:
            assert backend.host.evict(object_id)


async def lines(backend: LocalBackend, object_id: ObjectId) -> list[str]:
    found: list[str] = await backend.namespace(Notebook).get(object_id.tenant, object_id.name).lines()
    return found


async def exported(operator: Operator, object_id: ObjectId) -> bytes:
    async with operator.export(object_id) as (size_bytes, pieces):
        data = b"".join([piece async for piece in pieces])
    assert len(data) == size_bytes
    return data


async def bytes_of(data: bytes, at_once: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), at_once):
        yield data[start : start + at_once]


async def busy(backend: LocalBackend, folder: Path) -> tuple[Stub[Notebook], asyncio.Task[str], Callable[[], None]]:
    """A notebook with a turn that waits, for what the function does that comes with it."""
    gate, open_gate = gate_in(folder)
    stub = backend.namespace(Notebook).get("acme", "one")
    turn = asyncio.create_task(stub.add_around_gate("text", gate))
    async with asyncio.timeout(5.0):
        while (activation := backend.host.activation_of(notebook("one"))) is None or not activation.running:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    return stub, turn, open_gate


async def held(backend: LocalBackend, object_id: ObjectId) -> None:
    """Returns when somebody looks into the object."""
    async with asyncio.timeout(5.0):
        while (activation := backend.host.activation_of(object_id)) is None or activation.held is None:
            await asyncio.sleep(0)


async def logged(backend: LocalBackend, path: Path, object_id: ObjectId, text: str) -> None:
    """Adds a line to a notebook, which is in its log alone and asleep then, as a crash leaves it."""
    await write(backend, object_id, text=text, asleep=False)
    before, log = path.read_bytes(), wal_of(path).read_bytes()
    assert backend.host.evict(object_id)
    path.write_bytes(before)
    wal_of(path).write_bytes(log)


def path_of(data_dir: Path, object_id: ObjectId) -> Path:
    return object_id.path(data_dir / "objects", SETTINGS.slots)


def names(infos: tuple[ObjectInfo, ...]) -> list[str]:
    return [info.id.name for info in infos]


def changed(tmp_path: Path, data: bytes, *statements: str) -> bytes:
    file = tmp_path / "changed.sqlite"
    file.write_bytes(data)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return file.read_bytes()

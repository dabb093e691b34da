"""How does a host let others look at its objects, and look after them?

An `Inspector` does for one host what is no call of an object: it lists, describes, queries, evicts, exports, imports,
deletes, migrates and releases. Looking wakes nobody: no instance is made, no `start` is run and no file is brought up
to date, unless that is what was asked for. What needs a file for itself holds the object still meanwhile: its calls
wait, and none of its turns is ever met in the middle.

Each operation is a method, of its own or of its `Porter`, and `do` runs one by its name, for those who reach the host
from another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.runtime import query, sqlite, trouble
from actors.runtime.call import unpack
from actors.runtime.clock import Clock, SystemClock
from actors.runtime.custody import Custody, storage_errors
from actors.runtime.errors import InvalidArgument, ObjectNotFound, SlotOwned
from actors.runtime.host import ObjectHost
from actors.runtime.host_settings import HostSettings
from actors.runtime.object_files import Found, ObjectFiles, Wanted
from actors.runtime.object_id import ObjectId
from actors.runtime.object_info import ObjectInfo
from actors.runtime.porter import Porter
from actors.runtime.query import Query, QueryResult
from actors.runtime.schema import Schema
from actors.runtime.side_work import SideWork
from actors.runtime.transfers import Transfers

#: Objects told of at once.
PAGE_MAX = 1000
TRANSFERS = "exports"


@dataclass(frozen=True, kw_only=True, slots=True)
class MigratedPage:
    """What became of some objects in a sweep. `elsewhere` are those that another process has open."""

    seen: int
    migrated: int
    failed: tuple[tuple[ObjectId, str], ...]
    elsewhere: tuple[ObjectId, ...]
    last: ObjectId | None


class Inspector:
    """Looks after the objects of one host, on the host's event loop.

    Args:
        slots: whose objects the host lists; none for the host of one dedicated object.
        elsewhere: whether an object of these slots is another process's to run, which then locks a file beside it.
    """

    def __init__(
        self,
        host: ObjectHost,
        data_dir: Path,
        settings: HostSettings,
        *,
        slots: frozenset[int],
        elsewhere: Callable[[ObjectId], bool] = lambda _: False,
        clock: Clock | None = None,
    ) -> None:
        self._host = host
        self._settings = settings
        self._slots = slots
        self._clock = clock or SystemClock()
        self._files = ObjectFiles(data_dir / "objects", settings.slots)
        self._work = SideWork(host.name)
        self._custody = Custody(host, self._files, elsewhere=elsewhere)
        self._porter = Porter(
            host,
            self._files,
            self._custody,
            self._work,
            Transfers(data_dir / TRANSFERS, self._clock, settings.database_bytes_max),
            database_bytes_max=settings.database_bytes_max,
        )
        self._operations: dict[str, Callable[..., Awaitable[Any]]] = {
            operation.__name__: operation
            for operation in (
                self.page,
                self.count,
                self.describe,
                self.query,
                self.evict,
                self.fire_alarm,
                self.release,
                self.delete,
                self._porter.export_begin,
                self._porter.export_read,
                self._porter.import_begin,
                self._porter.import_write,
                self.import_finish,
                self._porter.transfer_end,
                self.migrate,
                self.migrate_page,
            )
        }

    async def do(self, operation: str, arguments: dict[str, Any]) -> Any:
        """Runs an operation by its name."""
        found = self._operations.get(operation)
        if found is None:
            raise InvalidArgument("operation", operation, "there is no such operation")
        return await found(**arguments)

    @property
    def busy(self) -> bool:
        """Somebody's database is on its way: its host must stay."""
        return self._porter.busy

    def close(self) -> None:
        """Ends what is under way. Before the host is closed: what is under way has files of its objects open."""
        self._work.close()
        self._porter.close()

    # -- looking

    async def page(self, wanted: Wanted, limit: int) -> list[ObjectInfo]:
        """The first of the host's objects that are wanted, in order; wakes none of them."""
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidArgument("limit", limit, f"must be from 1 to {PAGE_MAX}")
        # There are few in trouble, and which of them count is not for their names to tell.
        scanned = None if wanted.in_trouble else limit
        infos: list[ObjectInfo] = []
        for found in await self._find(wanted, scanned):
            if wanted.in_trouble and self._why_quarantined(found.id) is None:
                continue
            info = self._look_at(found)
            if info is not None:
                infos.append(info)
            if len(infos) >= limit:
                break
            await asyncio.sleep(0)  # turns of objects go on between two files
        return infos

    async def count(self, class_name: str | None) -> int:
        """How many objects the host has."""
        classes = self._classes(class_name)
        return await self._work.run(lambda _: sum(self._files.count(name, self._slots) for name in classes))

    async def describe(self, object_id: ObjectId) -> ObjectInfo:
        """
        Raises:
            ObjectNotFound
        """
        self._custody.require_class(object_id)
        found = self._files.one(object_id)
        info = self._look_at(found) if found is not None else None
        if info is None:
            raise ObjectNotFound(str(object_id))
        return info

    async def query(self, object_id: ObjectId, asked: Query) -> QueryResult:
        """Runs a statement that reads, between two turns of the object.

        Raises:
            ObjectNotFound
            StatementRefused, InvalidArgument: see `query.run`.
        """
        async with self._custody.closed(object_id) as path:
            return await self._work.run(lambda stopped: query.run(str(object_id), path, asked, stopped=stopped))

    # -- looking after

    async def evict(self, object_id: ObjectId, force: bool = False) -> bool:
        """Lets the object hibernate now. False: it has turns running or waiting, which `force` ends.

        Raises:
            ObjectNotFound
        """
        if not force or self._host.activation_of(object_id) is None:  # one that hangs may have deleted itself before
            self._custody.require_exists(object_id)
        return self._host.evict(object_id, force=force)

    async def fire_alarm(self, object_id: ObjectId) -> bool:
        """Runs the object's alarm now. False: it has none.

        Raises:
            ObjectNotFound
        """
        self._custody.require_exists(object_id)
        return bool(unpack(await self._host.fire_alarm(object_id, forced=True).wait()))

    async def release(self, object_id: ObjectId) -> bool:
        """Ends the object's quarantine. False: it was in none.

        Raises:
            ObjectNotFound
        """
        self._custody.require_exists(object_id)
        return self._host.release(object_id)

    async def delete(self, object_id: ObjectId) -> None:
        """Removes all that is there of the object; what waits for it meets a new one.

        Raises:
            ObjectNotFound
        """
        async with self._custody.held(object_id) as activation:
            with storage_errors(object_id, "delete"):
                activation.close()
                self._files.remove(object_id)
                self._host.release(object_id)
                self._host.alarms.set(object_id, None)

    async def import_finish(self, ticket: str, replace: bool) -> ObjectInfo:
        """As the `Porter` does it. Returns what there is now."""
        return await self.describe(await self._porter.import_finish(ticket, replace))

    # -- schema

    async def migrate(self, object_id: ObjectId) -> bool:
        """Brings the object's database up to date without waking it. False: it was.

        Raises:
            ObjectNotFound
            SlotOwned: another process has it.
            SchemaTooNew
        """
        schema = self._custody.schema(object_id)
        async with self._custody.quiet(object_id) as resident:
            path = self._files.database(object_id)
            if not path.exists():
                raise ObjectNotFound(str(object_id))
            if resident:
                return False  # or it would not be
            return await self._work.run(lambda _: self._bring_up_to_date(object_id, path, schema))

    async def migrate_page(self, class_name: str, after: ObjectId | None, limit: int) -> MigratedPage:
        """Brings some objects up to date, one after the other. What fails keeps no other from it."""
        found = await self._find(Wanted(class_name=class_name, after=after), limit)
        migrated = 0
        failed: list[tuple[ObjectId, str]] = []
        elsewhere: list[ObjectId] = []
        for one in found:
            try:
                if one.in_trouble and self._why_quarantined(one.id) is not None:
                    failed.append((one.id, "it is in quarantine"))
                else:
                    migrated += await self.migrate(one.id)
            except ObjectNotFound:
                continue  # it was deleted meanwhile
            except SlotOwned:
                elsewhere.append(one.id)
            except Exception as error:  # migrations are the author's code
                failed.append((one.id, f"{type(error).__name__}: {error}"))
        return MigratedPage(
            seen=len(found),
            migrated=migrated,
            failed=tuple(failed),
            elsewhere=tuple(elsewhere),
            last=found[-1].id if len(found) == limit else None,
        )

    def _bring_up_to_date(self, object_id: ObjectId, path: Path, schema: Schema) -> bool:
        with contextlib.closing(sqlite.peek(path)) as reading:
            if schema.is_up_to_date(reading):
                return False
        with contextlib.closing(sqlite.connect(path, self._settings.database_bytes_max)) as connection:
            connection.guard(str(object_id), schema.ledger)
            schema.bring_up_to_date(str(object_id), connection)
        return True

    # -- inside

    def _why_quarantined(self, object_id: ObjectId) -> str | None:
        """What keeps the object from running; None: nothing."""
        if not self._custody.is_elsewhere(object_id):
            refusal = self._host.quarantine.refusal(object_id)
            return refusal.reason if refusal is not None else None
        try:
            held = trouble.read(self._files.trouble(object_id), object_id)
        except (OSError, ValueError):
            return None  # it went meanwhile, or says nothing
        return held.reason if held.quarantined_at is not None else None

    async def _find(self, wanted: Wanted, limit: int | None) -> list[Found]:
        classes = self._classes(wanted.class_name)
        if not self._slots:
            return []
        return await self._work.run(lambda _: self._files.find(classes, self._slots, wanted, limit))

    def _classes(self, class_name: str | None) -> list[str]:
        if class_name is None:
            return sorted(self._host.schemas)
        if class_name not in self._host.schemas:
            raise InvalidArgument("class", class_name, "there is no such durable class")
        return [class_name]

    def _look_at(self, found: Found) -> ObjectInfo | None:
        path = self._files.database(found.id)
        activation = self._host.activation_of(found.id)
        here = activation is not None and activation.instance is not None
        written = [status for status in (_status(path), _status(sqlite.wal_of(path))) if status is not None]
        applied: tuple[str, ...] | None = None
        problem: str | None = None
        owned_elsewhere = False
        if here:
            applied = self._custody.schema(found.id).names
        elif _status(path) is None:
            if not found.in_trouble:
                return None  # it went meanwhile
        elif activation is None or activation.held is None:
            try:
                applied = self._applied(found.id, path)
            except SlotOwned:
                owned_elsewhere = True
            except (sqlite.Error, OSError) as error:
                problem = str(error)
        quarantined = self._why_quarantined(found.id) if found.in_trouble else None
        last_active_at = max((status.st_mtime for status in written), default=None)
        if activation is not None and here:
            last_active_at = self._clock.now() - (self._clock.monotonic() - activation.last_used_s)
        return ObjectInfo(
            id=found.id,
            size_bytes=sum(status.st_size for status in written),
            last_active_at=last_active_at,
            alarm_at=found.alarm_at,
            schema_version=applied[-1] if applied else None,
            migrations=None if applied is None else len(applied),
            resident=here or owned_elsewhere,
            quarantined=quarantined is not None,
            calls_waiting=len(activation.mailbox) if activation is not None else 0,
            problem=problem if quarantined is None else quarantined,
        )

    def _applied(self, object_id: ObjectId, path: Path) -> tuple[str, ...]:
        with self._custody.own_for_now(object_id), contextlib.closing(sqlite.peek(path)) as connection:
            return self._custody.schema(object_id).applied(connection)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None

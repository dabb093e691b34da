"""How does a person, or a program, look after the objects of a data directory?

    operator = Operator(actors.connect())
    page = await operator.list("ChatSession", tenant="acme", prefix="2026-")
    info = await operator.describe(page.objects[0].id)
    result = await operator.query(info.id, "SELECT count(*) FROM message")

An `Operator` asks the hosts, where the files are, and puts their answers together. Looking wakes no object. It knows
nothing of who may ask: it can reach the objects of every tenant, so whoever hands it out decides that.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Protocol

from actors.runtime.call import HostLost, HostRetired
from actors.runtime.errors import DurableError, InvalidArgument, ObjectReset, SlotOwned
from actors.runtime.namespace import Objects
from actors.runtime.object_files import Wanted, after_cursor, cursor_of
from actors.runtime.object_id import ObjectId
from actors.runtime.object_info import FAILURES_KEPT, MigrationProgress, ObjectInfo, ObjectPage
from actors.runtime.query import ROWS_DEFAULT, TIMEOUT_DEFAULT_S, Query, QueryResult
from actors.runtime.transfers import CHUNK_BYTES

PAGE_DEFAULT = 100
PAGE_MAX = 1000
#: A host restarts in one to two seconds; repeating goes on for longer than that, and not for ever.
REPEAT_FOR_S = 15.0
#: A scan of many names, a turn that is waited for, a large copy: all end sooner, or are not worth waiting for.
ANSWER_TIMEOUT_S = 600.0
_PAUSE_FIRST_S = 0.02
_PAUSE_MAX_S = 0.5
#: Objects that a host brings up to date before it tells how far it is.
_MIGRATED_AT_ONCE = 50


class Inspectable(Protocol):
    """Where hosts live. Both backends are one."""

    @property
    def hosts(self) -> int:
        """How many hosts share the slots."""

    async def inspect(self, where: ObjectId | int, operation: str, arguments: dict[str, Any], *, start: bool) -> Any:
        """Has the host of an object, or the one of a number, do an operation of its `Inspector`.

        Args:
            where: an object, or a host.
            operation: its name.
            arguments: its arguments.
            start: a host of the object's own is started if it does not live; else the host of its slot is asked.

        Raises:
            HostLost: it may or may not have been done.
            HostRetired: it has not.
        """


class ManagedObjects(Objects, Inspectable, Protocol):
    """Objects to be used, and to be looked after. Both backends are it."""


class Operator:
    """Looks after all objects that `objects` reaches."""

    def __init__(self, objects: Inspectable) -> None:
        self._objects = objects

    # -- looking

    async def list(
        self,
        class_name: str | None = None,
        *,
        tenant: str | None = None,
        prefix: str = "",
        limit: int = PAGE_DEFAULT,
        after: str | None = None,
        quarantined: bool = False,
    ) -> ObjectPage:
        """A page of objects, in the order of class, tenant and name. None of them wakes.

        Args:
            class_name: of one class only.
            tenant: of one tenant only.
            prefix: what their names begin with.
            limit: how many at most.
            after: `next` of the page before.
            quarantined: only those that are kept from running.

        Raises:
            InvalidArgument
        """
        if not 1 <= limit < PAGE_MAX:
            raise InvalidArgument("limit", limit, f"must be from 1 to {PAGE_MAX - 1}")
        wanted = Wanted(
            class_name=class_name,
            tenant=tenant,
            prefix=prefix,
            after=after_cursor(after) if after else None,
            in_trouble=quarantined,
        )
        # One more than is asked for tells whether there are more.
        asked = [self._ask(host, "page", wanted=wanted, limit=limit + 1) for host in range(self._objects.hosts)]
        pages = await asyncio.gather(*asked)
        merged = heapq.merge(*pages, key=lambda info: (info.id.class_name, info.id.tenant, info.id.name))
        infos = [info for info, _ in zip(merged, range(limit + 1), strict=False)]
        more = len(infos) > limit
        infos = list(await asyncio.gather(*[self._told_by_its_host(info) for info in infos[:limit]]))
        return ObjectPage(objects=tuple(infos), next=cursor_of(infos[-1].id) if more else None)

    async def _told_by_its_host(self, info: ObjectInfo) -> ObjectInfo:
        """What the host of a dedicated object adds, while it lives: nobody else may open the file."""
        if info.migrations is not None or not info.resident:
            return info
        try:
            return await self.describe(info.id)
        except DurableError:
            return info  # it ended meanwhile

    async def quarantined(self, *, tenant: str | None = None, limit: int = PAGE_DEFAULT) -> ObjectPage:
        """The objects that are kept from running, since they failed again and again."""
        return await self.list(tenant=tenant, limit=limit, quarantined=True)

    async def describe(self, object_id: ObjectId) -> ObjectInfo:
        """
        Raises:
            ObjectNotFound
        """
        info: ObjectInfo = await self._ask(object_id, "describe", start=False, object_id=object_id)
        return info

    async def query(
        self,
        object_id: ObjectId,
        sql: str,
        *binds: Any,
        rows_max: int = ROWS_DEFAULT,
        timeout_s: float = TIMEOUT_DEFAULT_S,
    ) -> QueryResult:
        """Runs a statement that reads on the object's database, between two of its turns. The object does not wake.

        Raises:
            ObjectNotFound
            StatementRefused: it would do more than read.
            InvalidArgument: SQLite can't run it, or not in time.
            ObjectOverloaded: a turn of the object did not end in time.
        """
        asked = Query(sql=sql, binds=binds, rows_max=rows_max, timeout_s=timeout_s)
        result: QueryResult = await self._ask(object_id, "query", object_id=object_id, asked=asked)
        return result

    # -- looking after

    async def evict(self, object_id: ObjectId, *, force: bool = False) -> bool:
        """Lets the object hibernate now. False: it has turns running or waiting.

        Args:
            object_id: of the object.
            force: ends what runs and what waits with `ObjectReset`: the way out where a turn never ends. What was
                committed stays; an alarm whose handler ran is fired again later. A turn that computes is not met: it
                holds up its whole host.

        Raises:
            ObjectNotFound
        """
        return bool(await self._ask(object_id, "evict", start=False, object_id=object_id, force=force))

    async def fire_alarm(self, object_id: ObjectId) -> bool:
        """Runs the object's alarm now, not when it is due. False: it has none.

        Raises:
            ObjectNotFound
        """
        return bool(await self._ask(object_id, "fire_alarm", safe=False, object_id=object_id))

    async def release(self, object_id: ObjectId) -> bool:
        """Ends the object's quarantine. False: it was in none.

        Raises:
            ObjectNotFound
        """
        return bool(await self._ask(object_id, "release", object_id=object_id))

    async def delete(self, object_id: ObjectId) -> None:
        """Removes the object from the disk: its database, its alarm, its record of trouble.

        Raises:
            ObjectNotFound
            ObjectOverloaded: a turn of it did not end in time.
        """
        await self._ask(object_id, "delete", safe=False, object_id=object_id)

    # -- out and in

    @contextlib.asynccontextmanager
    async def export(self, object_id: ObjectId) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """A copy of the object's database as it is now: its size in bytes, and the bytes in order.

        The copy is one file that any SQLite opens. It is gone from the host when the block is left.

        Raises:
            ObjectNotFound
            ObjectOverloaded: too many are on their way, or a turn of the object did not end in time.
            ObjectReset: the host was lost; while the bytes are read, too.
        """
        ticket, size_bytes = await self._ask(object_id, "export_begin", safe=False, object_id=object_id)

        async def pieces() -> AsyncIterator[bytes]:
            offset = 0
            while offset < size_bytes:
                piece = await self._ask(object_id, "export_read", safe=False, ticket=ticket, offset=offset)
                offset += len(piece)
                yield piece

        try:
            yield size_bytes, pieces()
        finally:
            await self._end(object_id, ticket)

    async def import_(self, object_id: ObjectId, data: AsyncIterable[bytes], *, replace: bool = False) -> ObjectInfo:
        """Makes an exported database the object's; one that sleeps afterwards. All of it or nothing.

        Raises:
            ObjectConflict: there is such an object, and `replace` is not set.
            InvalidArgument: it is no whole database of the class.
            SchemaTooNew: newer code wrote it.
            ObjectOverloaded: too many are on their way, or a turn of the object did not end in time.
            ObjectReset: the host was lost; nothing, or all of it, was done.
            StorageFull
        """
        ticket = await self._ask(object_id, "import_begin", safe=False, object_id=object_id, replace=replace)
        try:
            offset = 0
            async for piece in _in_chunks(data):
                await self._ask(object_id, "import_write", safe=False, ticket=ticket, offset=offset, data=piece)
                offset += len(piece)
            info: ObjectInfo = await self._ask(object_id, "import_finish", safe=False, ticket=ticket, replace=replace)
        except BaseException:
            await self._end(object_id, ticket)
            raise
        return info

    async def _end(self, object_id: ObjectId, ticket: str) -> None:
        # Should it not be told, the host ends the journey by itself.
        with contextlib.suppress(ObjectReset, SlotOwned):
            await self._ask(object_id, "transfer_end", safe=False, ticket=ticket)

    # -- schema

    async def migrate(self, class_name: str | None = None) -> AsyncIterator[MigrationProgress]:
        """Brings all objects, or those of a class, up to the code's schema, and tells again and again how far it is.

        Those that are resident are up to date. The others are not woken. What fails keeps no other from it; the next
        sweep, or the object's next call, tries again.
        """
        counted = [self._ask(host, "count", class_name=class_name) for host in range(self._objects.hosts)]
        progress = MigrationProgress(total=sum(await asyncio.gather(*counted)))
        yield progress
        for host in range(self._objects.hosts):
            after: ObjectId | None = None
            while True:
                page = await self._ask(
                    host, "migrate_page", class_name=class_name, after=after, limit=_MIGRATED_AT_ONCE
                )
                failed, migrated = list(page.failed), page.migrated
                for object_id in page.elsewhere:
                    try:
                        migrated += await self._ask(object_id, "migrate", start=False, object_id=object_id)
                    except Exception as error:  # migrations are the author's code, and the host may be lost
                        failed.append((object_id, f"{type(error).__name__}: {error}"))
                progress = MigrationProgress(
                    total=progress.total,
                    seen=progress.seen + page.seen,
                    migrated=progress.migrated + migrated,
                    failed=(*progress.failed, *failed)[:FAILURES_KEPT],
                    failures=progress.failures + len(failed),
                )
                yield progress
                after = page.last
                if after is None:
                    break

    # -- inside

    async def _ask(
        self, where: ObjectId | int, operation: str, *, safe: bool = True, start: bool = True, **arguments: Any
    ) -> Any:
        """Asks until there is an answer. What is not `safe` to do twice is asked again only if it was not done."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + REPEAT_FOR_S
        pause_s = _PAUSE_FIRST_S
        key = str(where) if isinstance(where, ObjectId) else f"host {where}"
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await self._objects.inspect(where, operation, arguments, start=start)
            except HostRetired as retired:
                reason, repeat = str(retired) or "its host is ending", True
            except HostLost as lost:
                reason, repeat = lost.reason, safe
            except TimeoutError:
                raise ObjectReset(key, f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
            if not repeat or loop.time() >= give_up_s:
                raise ObjectReset(key, reason)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


async def _in_chunks(data: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, in pieces of a size worth a message each."""
    waiting = bytearray()
    async for piece in data:
        waiting += piece
        while len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting[:CHUNK_BYTES])
            del waiting[:CHUNK_BYTES]
    if waiting:
        yield bytes(waiting)

"""How does a host give out the database of an object, and take one in?

A `Porter` copies an object's database as it is between two turns, and hands the copy out piece by piece; and it takes
another in, has it checked, and puts it in its place, all of it or nothing. Its methods are operations of the host's
`Inspector`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.runtime import incoming, sqlite
from actors.runtime.activation import Activation
from actors.runtime.alarms import key_of
from actors.runtime.connection import ObjectConnection
from actors.runtime.custody import Custody, storage_errors
from actors.runtime.errors import ObjectNotFound, ObjectReset
from actors.runtime.folder import make_folder, sync_folder
from actors.runtime.host import ObjectHost
from actors.runtime.object_files import ObjectFiles
from actors.runtime.object_id import ObjectId
from actors.runtime.side_work import SideWork
from actors.runtime.transfers import Transfers

#: A copy is made of so many pages at a time: one megabyte, after which it may be stopped.
_COPY_PAGES = 256


class Porter:
    """Carries the databases of one host's objects out and in, on the host's event loop."""

    def __init__(
        self,
        host: ObjectHost,
        files: ObjectFiles,
        custody: Custody,
        work: SideWork,
        transfers: Transfers,
        *,
        database_bytes_max: int,
    ) -> None:
        self._host = host
        self._files = files
        self._custody = custody
        self._work = work
        self._transfers = transfers
        self._database_bytes_max = database_bytes_max

    @property
    def busy(self) -> bool:
        """Somebody's database is on its way."""
        return self._transfers.under_way > 0

    def close(self) -> None:
        self._transfers.close()

    async def export_begin(self, object_id: ObjectId) -> tuple[str, int]:
        """Makes a copy of the object's database as it is between two turns. Returns a ticket, and its size in bytes.

        The object's calls wait meanwhile: a second for some hundred megabytes.

        Raises:
            ObjectNotFound, ObjectOverloaded, StorageFull
        """
        with self._transfers.room_for(object_id) as path:
            async with self._custody.held(object_id) as activation:
                with storage_errors(object_id, "export"):
                    await self._work.run(
                        lambda stopped: self._with_connection(
                            activation,
                            lambda connection: sqlite.copy_to(
                                connection, path, _COPY_PAGES, functools.partial(_go_on, object_id, stopped)
                            ),
                        )
                    )
            return self._transfers.depart(object_id, path)

    async def export_read(self, ticket: str, offset: int) -> bytes:
        """The next piece of the copy; nothing at its end.

        Raises:
            ObjectReset: the ticket counts no more.
        """
        return self._transfers.read(ticket, offset)

    async def import_begin(self, object_id: ObjectId, replace: bool) -> str:
        """A ticket for a database that is to become the object's.

        Raises:
            ObjectConflict: there is such an object, and it is not to be replaced.
            ObjectOverloaded, StorageFull
        """
        self._custody.require_class(object_id)
        self._custody.require_free(object_id, replace)
        with storage_errors(object_id, "import"):
            return self._transfers.expect(object_id)

    async def import_write(self, ticket: str, offset: int, data: bytes) -> None:
        """
        Raises:
            InvalidArgument, ObjectReset, StorageFull
        """
        self._transfers.write(ticket, offset, data)

    async def import_finish(self, ticket: str, replace: bool) -> ObjectId:
        """Makes the database that came in the object's, if it is one of its class; all of it or nothing.

        Raises:
            InvalidArgument, SchemaTooNew: it is none, or of newer code.
            ObjectConflict: there is such an object, and it is not to be replaced.
            ObjectOverloaded, ObjectReset, StorageFull
        """
        object_id = self._transfers.object_of(ticket)
        try:
            with storage_errors(object_id, "import"):
                await self._import(object_id, ticket, replace)
        finally:
            self._transfers.end(ticket)
        return object_id

    async def transfer_end(self, ticket: str) -> None:
        """Ends an export, or an import that is not to be."""
        self._transfers.end(ticket)

    async def _import(self, object_id: ObjectId, ticket: str, replace: bool) -> None:
        path = self._transfers.arrive(ticket)
        alarm_at = await self._work.run(
            lambda stopped: incoming.make_ready(
                path,
                str(object_id),
                self._custody.schema(object_id),
                size_bytes_max=self._database_bytes_max,
                stopped=stopped,
            )
        )
        async with self._custody.held(object_id, exists=False) as activation:
            activation.close()
            self._custody.require_free(object_id, replace)
            self._put_in_place(object_id, path, alarm_at)
            # Before the object may open the file: to close another descriptor of it would end its locks.
            self._transfers.end(ticket)

    def _put_in_place(self, object_id: ObjectId, path: Path, alarm_at: float | None) -> None:
        database = self._files.database(object_id)
        make_folder(database.parent)
        if sqlite.wal_of(database).exists():
            # What a crash left in the log is the old object's until the new one is in its place.
            with contextlib.suppress(sqlite.Error):  # a damaged one is what an import may be there to replace
                sqlite.connect(database, self._database_bytes_max).close()
            sqlite.wal_of(database).unlink(missing_ok=True)
        alarms = self._host.alarms
        if alarms.is_too_late(key_of(object_id), alarm_at):
            # First: an alarm that comes too soon does no harm, and one that nobody knows of never comes.
            alarms.set(object_id, alarm_at)
        os.rename(path, database)
        sync_folder(database.parent)
        alarms.set(object_id, alarm_at)

    def _with_connection(self, activation: Activation, use: Callable[[ObjectConnection], Any]) -> Any:
        """Uses the connection of a held object, or one of its own where it sleeps."""
        if activation.instance is not None:
            return use(activation.instance.storage.connection)
        path = self._files.database(activation.id)
        if not path.exists():
            raise ObjectNotFound(str(activation.id))
        try:
            connection = sqlite.connect(path, self._database_bytes_max)
        except sqlite.Error as error:
            raise ObjectReset(str(activation.id), f"open failed: {error}") from error
        with contextlib.closing(connection):
            return use(connection)


def _go_on(object_id: ObjectId, stopped: Callable[[], bool]) -> None:
    if stopped():
        raise ObjectReset(str(object_id), "its host is stopping")

"""Which objects does a host have, and how is one kept still while somebody else has its file?

`Custody` says for one host whether there is an object, and holds it: its calls wait meanwhile, and none of its turns is
ever met in the middle. What it gives out ends with the block that it is used in.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from actors.runtime import sqlite
from actors.runtime.activation import Activation
from actors.runtime.errors import DurableError, ObjectConflict, ObjectNotFound, ObjectReset, StorageFull
from actors.runtime.host import ObjectHost
from actors.runtime.object_files import ObjectFiles
from actors.runtime.object_id import ObjectId
from actors.runtime.schema import Schema
from actors.runtime.slot import SlotLock

#: How long a turn that runs may keep others from looking at its object.
HOLD_WAIT_S = 5.0


class Custody:
    """Keeps the objects of one host still, on the host's event loop.

    Args:
        host: runs them.
        files: where they are.
        elsewhere: whether an object of the host's slots is another process's to run, which then locks a file beside it.
    """

    def __init__(self, host: ObjectHost, files: ObjectFiles, *, elsewhere: Callable[[ObjectId], bool]) -> None:
        self._host = host
        self._files = files
        self.is_elsewhere = elsewhere

    def schema(self, object_id: ObjectId) -> Schema:
        """
        Raises:
            ObjectNotFound: there is no such class.
        """
        self.require_class(object_id)
        return self._host.schemas[object_id.class_name]

    def require_class(self, object_id: ObjectId) -> None:
        if object_id.class_name not in self._host.schemas:
            raise ObjectNotFound(str(object_id))

    def require_exists(self, object_id: ObjectId) -> None:
        self.require_class(object_id)
        if self._files.one(object_id) is None:
            raise ObjectNotFound(str(object_id))

    def require_free(self, object_id: ObjectId, replace: bool) -> None:
        if not replace and self._files.database(object_id).exists():
            raise ObjectConflict(
                str(object_id), "there is such an object already; replace it on purpose, or not at all"
            )

    @contextlib.asynccontextmanager
    async def held(self, object_id: ObjectId, *, exists: bool = True) -> AsyncIterator[Activation]:
        """Keeps an object still.

        Args:
            object_id: of the object.
            exists: it has to; else there may be none.

        Raises:
            ObjectNotFound, ObjectOverloaded
        """
        if exists:
            self.require_exists(object_id)
        async with self._host.hold(object_id, HOLD_WAIT_S) as activation:
            if exists:
                self.require_exists(object_id)  # a turn that ran until now may have deleted it
            yield activation

    @contextlib.asynccontextmanager
    async def closed(self, object_id: ObjectId) -> AsyncIterator[Path]:
        """Keeps an object still and its database closed, for another process to open it. Who calls next wakes it.

        Raises:
            ObjectNotFound: also where it is awake, and nothing of it was ever stored.
            ObjectOverloaded
        """
        async with self.held(object_id) as activation:
            activation.close()
            path = self._files.database(object_id)
            if not path.exists():
                raise ObjectNotFound(str(object_id))
            yield path

    @contextlib.asynccontextmanager
    async def quiet(self, object_id: ObjectId) -> AsyncIterator[bool]:
        """Nobody opens the object within. Gives whether it is open.

        Raises:
            SlotOwned: another process has it.
        """
        if self.is_elsewhere(object_id):
            with self.own_for_now(object_id):
                yield False
        else:
            async with self.held(object_id, exists=False) as activation:
                yield activation.instance is not None

    @contextlib.contextmanager
    def own_for_now(self, object_id: ObjectId) -> Iterator[None]:
        """Owns an object's file where its own process does not live. A process that starts waits for longer than that.

        Raises:
            SlotOwned: its process lives.
        """
        if not self.is_elsewhere(object_id):
            yield
            return
        lock = SlotLock(self._files.database(object_id).with_suffix(".lock"), self._host.name, wait_s=0.0)
        try:
            yield
        finally:
            lock.release(remove=True)


@contextlib.contextmanager
def storage_errors(object_id: ObjectId, operation: str) -> Iterator[None]:
    """Says what an error of the disk means for an object that is looked after."""
    try:
        yield
    except DurableError:
        raise
    except (sqlite.Error, OSError) as error:
        if sqlite.is_full(error):
            raise StorageFull(str(object_id), operation) from error
        raise ObjectReset(str(object_id), f"{operation} failed: {error}") from error

"""Where do objects live without Ray?

In this process, in one `ObjectHost`, behind the same stubs: for unit tests, for trying a class out, and for programs
that want durable objects and no cluster. Files, locks and semantics are those of the real thing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from actors.runtime import class_history
from actors.runtime.call import Call, Reply
from actors.runtime.class_migration import ClassMigration
from actors.runtime.clock import Clock
from actors.runtime.host import ObjectHost
from actors.runtime.host_settings import HostSettings
from actors.runtime.inspection import Inspector
from actors.runtime.lane import Lane
from actors.runtime.namespace import Class, Namespace
from actors.runtime.object import ClassSpec, DurableObject, by_name
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import code_of
from actors.runtime.slot import SlotLock, record_slots
from actors.runtime.storage import Storage


class LocalBackend:
    """One host in this process that owns every slot of `data_dir`.

    Args:
        data_dir: where everything is kept. Made if need be.
        classes: the durable classes.
        lock_wait_s: how long to wait for another process that has the data directory.
        history: of the classes, where it is kept.
        chance, commit, keeps_time, always_evict, judges: of the host.

    Raises:
        SlotOwned: another process has the data directory.
        ClassesRefused: the history, if one is given, does not fit the classes or the data.
    """

    def __init__(
        self,
        data_dir: Path,
        classes: Iterable[type[DurableObject]],
        *,
        settings: HostSettings | None = None,
        clock: Clock | None = None,
        lock_wait_s: float = 0.0,
        history: Sequence[ClassMigration] | None = None,
        chance: Callable[[], float] = random.random,
        commit: Callable[[ObjectId, Storage], None] | None = None,
        keeps_time: bool = True,
        always_evict: bool = False,
        judges: bool = True,
    ) -> None:
        settings = settings or HostSettings()
        record_slots(data_dir, settings.slots)
        self._locks: list[SlotLock] = []
        owner = f"process {os.getpid()}, without Ray"
        try:
            for slot in range(settings.slots):
                path = data_dir / "slots" / f"{slot:03d}.lock"
                self._locks.append(SlotLock(path, owner, wait_s=lock_wait_s))
            specs = [ClassSpec(durable_class) for durable_class in classes]
            self._specs = by_name(specs)
            names = list(self._specs)
            class_history.apply(data_dir, history, names, slots=settings.slots, owner=None, wait_s=lock_wait_s)
            self.host = ObjectHost(
                name="local",
                data_dir=data_dir,
                classes=self._specs.values(),
                owns=lambda _: True,
                slots=range(settings.slots),
                objects=lambda: self,
                mark_path=data_dir / "slots" / "local.running",
                code=code_of(spec.durable_class for spec in specs),
                settings=settings,
                clock=clock,
                chance=chance,
                commit=commit,
                keeps_time=keeps_time,
                always_evict=always_evict,
                judges=judges,
            )
            slots = frozenset(range(settings.slots))
            self.inspector = Inspector(self.host, data_dir, settings, slots=slots, clock=clock)
            self.host.load()
        except BaseException:
            self._release()
            raise
        self._lane = Lane(self.host)

    def namespace(self, durable_class: type[Class]) -> Namespace[Class]:
        return Namespace(self, self._specs[durable_class.__name__])

    async def ready(self) -> None:
        """At once: the slots were taken when this was made. Alarms are fired from now on, as they are from any call."""
        self.host.begin()

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        if not self._locks:
            raise RuntimeError("this backend was closed")
        return await self._lane.call(call)

    @property
    def hosts(self) -> int:
        return 1

    async def inspect(self, where: ObjectId | int, operation: str, arguments: dict[str, Any], *, start: bool) -> Any:
        if not self._locks:
            raise RuntimeError("this backend was closed")
        return await self.inspector.do(operation, arguments)

    def send_ref(self, object_id: ObjectId, call: Call) -> NoReturn:
        raise TypeError("an ObjectRef needs Ray; await the method instead")

    def close(self) -> None:
        """Closes all files and gives up the slots. What was acknowledged is durable without it."""
        self.inspector.close()
        self.host.close()
        self._release()

    def _release(self) -> None:
        while self._locks:
            self._locks.pop().release()

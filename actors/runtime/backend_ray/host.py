"""Which process runs objects?"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import Any

import ray

from actors.runtime import host, sqlite_memory
from actors.runtime.backend_ray.backend import RayBackend
from actors.runtime.backend_ray.door import Door, door_of
from actors.runtime.backend_ray.named import LOG_FORMAT, NAMESPACE, call_after_start
from actors.runtime.call import Call, HostRetired, Reply
from actors.runtime.errors import SlotOwned
from actors.runtime.inspection import Inspector
from actors.runtime.object_files import make_slot_folders
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import Cluster, Placement, code_of
from actors.runtime.slot import ACQUIRE_WAIT_S, SlotLock, slots_of
from actors.runtime.spares import Spares

logger = logging.getLogger("mobula.objects")


class ObjectHost(host.ObjectHost):
    """The Ray actor around a host: takes the locks of its slots, then runs their objects.

    While another process has one of the locks every call raises `SlotOwned`, and the next call tries again.
    """

    def __init__(self, cluster: Cluster, control: str, number: int, dedicated: ObjectId | None = None) -> None:
        logging.basicConfig(format=LOG_FORMAT)
        sqlite_memory.take_little()
        self._cluster = cluster
        self._control = control
        self._stubs: RayBackend | None = None
        self._waking: asyncio.Task[None] | None = None
        self._locks: list[SlotLock] = []
        slots = cluster.settings.slots
        objects_dir = cluster.data_dir / "objects"
        if dedicated is None:
            mine = frozenset(slots_of(number, cluster.hosts, slots))
            name = f"host-{number}"
            self._lock_paths = [cluster.data_dir / "slots" / f"{slot:03d}.lock" for slot in sorted(mine)]
            mark_path = cluster.data_dir / "slots" / f"{name}.running"
        else:
            mine = frozenset([dedicated.slot(slots)])
            name = str(dedicated)
            self._lock_paths = [dedicated.path(objects_dir, slots).with_suffix(".lock")]
            mark_path = self._lock_paths[0].with_suffix(".running")
        placement = Placement(cluster)

        def owns(object_id: ObjectId) -> bool:
            if dedicated is not None:
                return object_id == dedicated
            return object_id.slot(slots) in mine and not placement.is_dedicated(object_id)

        super().__init__(
            name=name,
            data_dir=cluster.data_dir,
            classes=cluster.specs,
            owns=owns,
            slots=mine,
            objects=self._all_objects,
            mark_path=mark_path,
            code=code_of(cluster.classes),
            settings=cluster.settings,
            spares=Spares(cluster.data_dir / "spares" / name) if dedicated is None else None,
        )
        self._door = Door(name, self.answer, self.wait)
        self.inspector = Inspector(
            self,
            cluster.data_dir,
            cluster.settings,
            slots=mine if dedicated is None else frozenset(),
            elsewhere=placement.is_dedicated if dedicated is None else lambda _: False,
        )
        context = ray.get_runtime_context()
        self._owner = f"{name} (Ray session {context.get_session_name()}, actor {context.get_actor_id()})"
        self._is_dedicated = dedicated is not None
        try:
            self._take_slots(ACQUIRE_WAIT_S)
        except (SlotOwned, OSError) as error:
            # Not raised: an actor whose constructor fails is dead for good. The owner may be on its way out, and the
            # disk may work again.
            logger.error("host=%s cannot start: %s", name, error)
        # What is loaded stays: no later collection, which all objects wait for, needs to look through it.
        gc.collect()
        gc.freeze()
        call_after_start("wake")

    def _take_slots(self, wait_s: float) -> None:
        while len(self._locks) < len(self._lock_paths):
            self._locks.append(SlotLock(self._lock_paths[len(self._locks)], self._owner, wait_s=wait_s))
        self.load()
        if not self._is_dedicated:
            make_slot_folders(self._cluster.data_dir / "objects", self._classes, self._slots)

    def _all_objects(self) -> RayBackend:
        if self._stubs is None:
            self._stubs = RayBackend(ray.get_actor(self._control, namespace=NAMESPACE), self._cluster)
        return self._stubs

    async def wake(self) -> None:
        """Has alarms fired from now on, as any call does."""
        self._waking = self._waking or asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        while True:
            try:
                self._before_call()
                break
            except (SlotOwned, HostRetired):
                await asyncio.sleep(ACQUIRE_WAIT_S)
        self.begin()

    async def door(self) -> bool:
        """Whether callers on this machine may reach it without Ray."""
        self._before_call()
        return not self._retired and self._door.open(door_of(self._cluster.data_dir, self.name))

    def answer(self, calls: list[Call]) -> list[Reply]:
        self._before_call()
        return super().answer(calls)

    async def call(self, call: Call) -> Any:
        self._before_call()
        return await super().call(call)

    async def inspect(self, operation: str, arguments: dict[str, Any]) -> Any:
        """Does an operation of its `Inspector`."""
        self._before_call()
        if self._retired:
            raise HostRetired
        return await self.inspector.do(operation, arguments)

    async def ready(self) -> str:
        """The host's name, once it owns its slots."""
        self._before_call()
        return self.name

    async def retire_if_idle(self, idle_for_s: float) -> bool:
        """Ends a dedicated host that had no turn for so long. True once it refuses every call."""
        # One that has retired says so again: whoever asked before may not have heard it.
        if not self._retired:
            next_at = self.alarms.next_at
            if next_at is not None and next_at - time.time() < self._cluster.settings.idle_after_s:
                return False  # it would be back before it has been idle again
            if self.inspector.busy or self.idle_for_s < idle_for_s or not self.retire():
                return False
        self.inspector.close()
        self._door.close()
        while self._locks:
            self._locks.pop().release(remove=True)
        return True

    async def idleness_s(self) -> float:
        return 0.0 if self.inspector.busy else self.idle_for_s

    def _before_call(self) -> None:
        if not self._retired and not (self.is_loaded and len(self._locks) == len(self._lock_paths)):
            try:
                self._take_slots(0.0)
            except OSError as error:
                raise HostRetired(f"{self.name} can't take its slots: {error}") from error

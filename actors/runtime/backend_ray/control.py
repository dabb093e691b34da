"""Who starts the hosts, and ends them?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError

from actors.runtime import class_history
from actors.runtime.alarms import entry_of
from actors.runtime.backend_ray.host import ObjectHost
from actors.runtime.backend_ray.named import ACTOR_OPTIONS, CONTROL_PREFIX, LOG_FORMAT, NAMESPACE, call_after_start
from actors.runtime.class_migration import names_in
from actors.runtime.errors import ClassesRefused, DurableError, InvalidArgument, ObjectOverloaded, SlotOwned
from actors.runtime.object_files import files_in
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import Cluster, Placement
from actors.runtime.slot import ACQUIRE_WAIT_S, record_slots

logger = logging.getLogger("mobula.objects")

#: Calls that one host works on at once; a parked call costs a coroutine.
_HOST_CONCURRENCY = 4096
#: Ended dedicated hosts whose number is kept.
_RETIRED_REMEMBERED = 1_000
#: Alarms of dedicated objects are looked for on disk this often.
_ALARMS_SCANNED_EVERY_S = 60.0
#: A dedicated host that does not say how idle it is by then is not idle.
_ASK_TIMEOUT_S = 1.0


class Control:
    """Starts the pool's hosts, and keeps the dedicated ones within their number.

    While the history of classes does not fit the data there is no pool: whoever asks for a host gets the reason, and
    the history is looked at again.
    """

    def __init__(self, cluster: Cluster) -> None:
        logging.basicConfig(format=LOG_FORMAT)
        self._cluster = cluster
        self._dedicated: dict[ObjectId, ActorHandle] = {}
        self._retired: deque[str] = deque(maxlen=_RETIRED_REMEMBERED)
        self._placement = Placement(cluster)
        #: When to start the host of a dedicated object, at the latest: it fires its alarm by itself.
        self._alarms: dict[ObjectId, float] = {}
        self._reaper: asyncio.Task[None] | None = None
        self._making_room = asyncio.Lock()
        self._pool: list[ActorHandle] = []
        self._refusal: ClassesRefused | InvalidArgument | SlotOwned | None = None
        self._begin(ACQUIRE_WAIT_S)
        call_after_start("tend")

    def _begin(self, wait_s: float) -> None:
        """Brings the classes on disk up to date, and starts the pool."""
        cluster, names = self._cluster, [spec.name for spec in self._cluster.specs]
        context = ray.get_runtime_context()
        try:
            # Looked at before anything ends: a deployment that can't run leaves the one that does alone.
            record_slots(cluster.data_dir, cluster.settings.slots)
            class_history.check(cluster.data_dir, cluster.history, names)
            # By the name it was given: the files behind the fingerprint may have changed since.
            self._end_older_deployment(context.get_actor_name())
            changes = class_history.apply(
                cluster.data_dir,
                cluster.history,
                names,
                slots=cluster.settings.slots,
                owner=f"a migration of classes (Ray session {context.get_session_name()})",
                wait_s=wait_s,
            )
        except (ClassesRefused, InvalidArgument, SlotOwned) as refusal:
            # Not raised: an actor whose constructor fails is dead for good, and nobody would learn why.
            logger.error("cannot start the pool: %s", refusal)
            self._refusal = refusal
            return
        self._refusal = None
        if changes.applied:
            logger.info("classes: applied=%s moved=%s", ",".join(changes.applied), changes.moved)
        self._pool = [self._start_host(number) for number in range(cluster.hosts)]
        for object_id in self._dedicated_found():
            with contextlib.suppress(ValueError):  # it ended meanwhile
                self._dedicated[object_id] = ray.get_actor(object_id.key, namespace=object_id.class_name)

    def _require_pool(self) -> None:
        if self._refusal is not None:
            self._begin(0.0)
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    def _end_older_deployment(self, mine: str | None) -> None:
        """Hosts keep the code and settings that they started with. A new deployment replaces them.

        The older control actor goes last: as long as it is there, a restart of this one does it again.
        """
        found = [(actor["namespace"], actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)]
        older = [
            (NAMESPACE, name)
            for namespace, name in found
            if namespace == NAMESPACE and name.startswith(CONTROL_PREFIX) and name != mine
        ]
        if not older:
            return
        # The older deployment may know classes by names that they had then.
        classes = {spec.name for spec in self._cluster.specs} | names_in(self._cluster.history or ())
        hosts = [
            (namespace, name)
            for namespace, name in found
            if namespace in classes or (namespace == NAMESPACE and name.startswith("host-"))
        ]
        for namespace, name in [*hosts, *older]:
            logger.info("ending %s of an older deployment", name)
            with contextlib.suppress(ValueError):  # it ended meanwhile
                ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)

    def _dedicated_found(self) -> list[ObjectId]:
        classes = {spec.name for spec in self._cluster.specs}
        found = ray.util.list_named_actors(all_namespaces=True)
        return [ObjectId.from_key(a["namespace"], a["name"]) for a in found if a["namespace"] in classes]

    def _start_host(self, number: int, dedicated: ObjectId | None = None) -> ActorHandle:
        control = ray.get_runtime_context().get_actor_name()
        options: dict[str, Any] = {**ACTOR_OPTIONS, "max_concurrency": _HOST_CONCURRENCY}
        if self._cluster.host_resource:
            options["resources"] = {self._cluster.host_resource: 0.001}
        if dedicated is None:
            options |= {"name": f"host-{number}", "namespace": NAMESPACE}
        else:
            options |= {"name": dedicated.key, "namespace": dedicated.class_name}
        return ray.remote(ObjectHost).options(**options).remote(self._cluster, control, number, dedicated)

    async def cluster(self) -> Cluster:
        """
        Raises:
            ClassesRefused, SlotOwned: as `ready` does.
        """
        self._require_pool()
        return self._cluster

    async def ready(self) -> None:
        """Returns when every pool host owns its slots.

        Raises:
            ClassesRefused: the history of classes does not fit the code or the data.
            SlotOwned: another process has one of them; says which.
        """
        self._require_pool()
        await asyncio.gather(*[pool_host.ready.remote() for pool_host in self._pool])

    async def dedicated(self, object_id: ObjectId) -> ActorHandle:
        """The host of one dedicated object, started if need be.

        Raises:
            ClassesRefused, SlotOwned: as `ready` does.
            ObjectOverloaded: as many as may live are there, and none is idle.
        """
        self._require_pool()
        async with self._making_room:
            if object_id not in self._dedicated:
                if len(self._dedicated) >= self._dedicated_max():
                    await self._make_room(object_id)
                self._dedicated[object_id] = self._start_host(0, object_id)
            return self._dedicated[object_id]

    async def was_retired(self, actor_id: str) -> bool:
        """The host ended after it had refused what it did not run: whatever failed with it is safe to repeat."""
        return actor_id in self._retired

    def _dedicated_max(self) -> int:
        resource = self._cluster.host_resource
        nodes = [node for node in ray.nodes() if node["Alive"] and (not resource or resource in node["Resources"])]
        return self._cluster.dedicated_max * max(1, len(nodes))

    async def _make_room(self, newcomer: ObjectId) -> None:
        """Ends the dedicated host that was idle for longest."""
        asked = await self._ask_all(lambda handle: handle.idleness_s.remote())
        for object_id, idle_s in sorted(asked, key=lambda pair: pair[1], reverse=True):
            if idle_s > 0 and await self._retire(object_id, 0.0):
                return
        reason = f"{len(self._dedicated)} dedicated objects are busy"
        raise ObjectOverloaded(str(newcomer), reason, self._cluster.settings.idle_after_s)

    async def tend(self) -> None:
        """Ends dedicated hosts that are idle, and starts those whose objects have an alarm, for as long as it lives."""
        if self._reaper is None and self._cluster.dedicated:
            self._reaper = asyncio.get_running_loop().create_task(self._reap())

    async def _reap(self) -> None:
        idle_after_s = self._cluster.settings.idle_after_s
        scanned_s = -_ALARMS_SCANNED_EVERY_S
        while True:
            try:
                if time.monotonic() - scanned_s >= _ALARMS_SCANNED_EVERY_S:
                    self._alarms = await asyncio.to_thread(self._alarms_on_disk)
                    scanned_s = time.monotonic()
                await self._wake_for_alarms()
                await self._retire_idle(idle_after_s)
            except Exception:  # of the disk, of Ray, of one host: nobody else would fire these alarms again
                logger.exception("dedicated objects are looked after again in a moment")
            await asyncio.sleep(min(1.0, idle_after_s / 2))

    async def _retire_idle(self, idle_after_s: float) -> None:
        for object_id, idle_s in await self._ask_all(lambda handle: handle.idleness_s.remote()):
            if idle_s >= idle_after_s:
                async with self._making_room:
                    await self._retire(object_id, idle_after_s)

    def _alarms_on_disk(self, only: ObjectId | None = None) -> dict[ObjectId, float]:
        """The alarms of all dedicated objects, or of one. Those of objects that run are not kept up to date."""
        objects_dir, slots = self._cluster.data_dir / "objects", self._cluster.settings.slots
        classes = {class_name for _, class_name in self._cluster.dedicated} if only is None else {only.class_name}
        found: dict[ObjectId, float] = {}
        for path in files_in(objects_dir, classes, range(slots) if only is None else [only.slot(slots)]):
            if (entry := entry_of(path.name)) is None:
                continue
            with contextlib.suppress(InvalidArgument):  # nothing of ours
                object_id = ObjectId.from_key(path.parent.parent.name, entry[0])
                if object_id == only or (only is None and self._placement.is_dedicated(object_id)):
                    found[object_id] = min(entry[1], found.get(object_id, entry[1]))
        return found

    async def _wake_for_alarms(self) -> None:
        now = time.time()
        for object_id in [object_id for object_id, at in self._alarms.items() if at <= now]:
            try:
                await self.dedicated(object_id)
            except DurableError as refused:
                logger.warning("object=%s its alarm waits: %s", object_id, refused)
                return  # for the next round
            del self._alarms[object_id]

    async def _ask_all(self, ask: Callable[[ActorHandle], Awaitable[float]]) -> list[tuple[ObjectId, float]]:
        async def one(object_id: ObjectId, handle: ActorHandle) -> tuple[ObjectId, float]:
            try:
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    return object_id, await ask(handle)
            except ActorDiedError:
                self._dedicated.pop(object_id, None)  # ended by somebody else; the next call starts it again
            except (RayActorError, TimeoutError):
                pass  # restarting, in a long turn, or waiting for a node to start on
            return object_id, 0.0

        return list(await asyncio.gather(*[one(*item) for item in list(self._dedicated.items())]))

    async def _retire(self, object_id: ObjectId, idle_for_s: float) -> bool:
        handle = self._dedicated.get(object_id)
        if handle is None:
            return True
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                if not await handle.retire_if_idle.remote(idle_for_s):
                    return False
        except (RayActorError, TimeoutError):
            return False  # should it have retired all the same, it refuses its calls, and is asked again soon
        self._retired.append(handle._actor_id.hex())
        ray.kill(handle, no_restart=True)
        del self._dedicated[object_id]
        try:
            self._alarms |= await asyncio.to_thread(self._alarms_on_disk, object_id)
        except OSError as error:
            logger.warning("object=%s its alarm is looked for later: %s", object_id, error)
        return True

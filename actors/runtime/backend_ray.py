"""How do objects live on a Ray cluster?

Three kinds of named, detached, restarting actors, all of them made and found here and nowhere else:

- `host-0` ... in the Ray namespace `mobula`: the pool's hosts, each owner of its share of the slots.
- `tenant:name` in the Ray namespace of its class: the host of one dedicated object.
- `control-<fingerprint>` in `mobula`: starts the pool, and starts, counts and ends dedicated hosts. No call of an
  object passes through it.

A restarted host locks its slots again before it runs anything. Ray never repeats a call by itself (`max_task_retries`
is 0): the stub decides what is safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from actors.runtime import class_history, host
from actors.runtime.alarms import entry_of
from actors.runtime.call import Call, HostLost, HostRetired, Reply
from actors.runtime.class_migration import names_in
from actors.runtime.errors import ClassesRefused, DurableError, InvalidArgument, ObjectOverloaded, SlotOwned
from actors.runtime.inspection import Inspector
from actors.runtime.lane import Lane
from actors.runtime.namespace import Class, Namespace
from actors.runtime.object import ClassSpec
from actors.runtime.object_files import files_in
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import Cluster, Placement, code_of
from actors.runtime.slot import ACQUIRE_WAIT_S, SlotLock, record_slots, slots_of

logger = logging.getLogger("mobula.objects")

NAMESPACE = "mobula"
_CONTROL_PREFIX = "control-"
#: Calls that one host works on at once; a parked call costs a coroutine.
_HOST_CONCURRENCY = 4096
#: For starting hosts, and for finding them again.
START_TIMEOUT_S = 60.0
#: Lanes of dedicated objects that a caller keeps, and ended dedicated hosts that the control actor remembers.
_LANES_MAX = 10_000
_RETIRED_REMEMBERED = 1_000
_SELF_CALLS_MAX = 100
_SELF_CALL_TIMEOUT_S = 10.0
_SELF_CALL_PAUSE_S = 0.1
#: Alarms of dedicated objects are looked for on disk this often.
_ALARMS_SCANNED_EVERY_S = 60.0
#: A dedicated host that does not say how idle it is by then is not idle.
_ASK_TIMEOUT_S = 1.0
#: Of the actors' own processes; Ray keeps what they log in its folder.
_LOG_FORMAT = "%(levelname)s %(asctime)s %(name)s -- %(message)s"
_ACTOR_OPTIONS: dict[str, Any] = {
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
}


class ObjectHost(host.ObjectHost):
    """The Ray actor around a host: takes the locks of its slots, then runs their objects.

    While another process has one of the locks every call raises `SlotOwned`, and the next call tries again.
    """

    def __init__(self, cluster: Cluster, control: str, number: int, dedicated: ObjectId | None = None) -> None:
        logging.basicConfig(format=_LOG_FORMAT)
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
        )
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
        _call_after_start("wake")

    def _take_slots(self, wait_s: float) -> None:
        while len(self._locks) < len(self._lock_paths):
            self._locks.append(SlotLock(self._lock_paths[len(self._locks)], self._owner, wait_s=wait_s))
        self.load()

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

    async def batch(self, calls: list[Call]) -> list[Reply]:
        self._before_call()
        return await super().batch(calls)

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
        next_at = self.alarms.next_at
        if next_at is not None and next_at - time.time() < self._cluster.settings.idle_after_s:
            return False  # it would be back before it has been idle again
        if self.inspector.busy or self.idle_for_s < idle_for_s or not self.retire():
            return False
        self.inspector.close()
        while self._locks:
            self._locks.pop().release(remove=True)
        return True

    async def idleness_s(self) -> float:
        return 0.0 if self.inspector.busy else self.idle_for_s

    def _before_call(self) -> None:
        if len(self._locks) < len(self._lock_paths) and not self._retired:
            try:
                self._take_slots(0.0)
            except OSError as error:
                raise HostRetired(f"{self.name} can't take its slots: {error}") from error


def _call_after_start(method: str) -> None:
    """Has the actor that is being constructed call itself: nobody else may for a long time, and there may be alarms.

    From a thread, since the constructor has no event loop, and again and again, since an actor that Ray restarts does
    not get what it sends itself before it is known to be alive.
    """
    me = ray.get_runtime_context().current_actor

    def call() -> None:
        for _ in range(_SELF_CALLS_MAX):
            try:
                # Not `ray.get`, which takes this thread for the event loop's and logs a warning.
                getattr(me, method).remote().future().result(timeout=_SELF_CALL_TIMEOUT_S)
                return
            except (RayActorError, TimeoutError):
                time.sleep(_SELF_CALL_PAUSE_S)

    threading.Thread(target=call, name=method, daemon=True).start()


class Control:
    """Starts the pool's hosts, and keeps the dedicated ones within their number.

    While the history of classes does not fit the data there is no pool: whoever asks for a host gets the reason, and
    the history is looked at again.
    """

    def __init__(self, cluster: Cluster) -> None:
        logging.basicConfig(format=_LOG_FORMAT)
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
        _call_after_start("tend")

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
            if namespace == NAMESPACE and name.startswith(_CONTROL_PREFIX) and name != mine
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
        options: dict[str, Any] = {**_ACTOR_OPTIONS, "max_concurrency": _HOST_CONCURRENCY}
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
            if time.monotonic() - scanned_s >= _ALARMS_SCANNED_EVERY_S:
                scanned_s = time.monotonic()
                self._alarms = await asyncio.to_thread(self._alarms_on_disk)
            await self._wake_for_alarms()
            await asyncio.sleep(min(1.0, idle_after_s / 2))
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
        self._alarms |= await asyncio.to_thread(self._alarms_on_disk, object_id)
        return True


class _ActorLink:
    """The way to one host actor; finds it, and finds it again after it died for good."""

    def __init__(
        self,
        name: str,
        find: Callable[[], Awaitable[ActorHandle]],
        was_retired: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._name = name
        self._find = find
        self._was_retired = was_retired
        self._handle: ActorHandle | None = None

    async def batch(self, calls: list[Call]) -> list[Reply]:
        replies: list[Reply] = await self._send(lambda handle: handle.batch.remote(calls))
        return replies

    async def wait(self, ticket: str) -> Reply:
        try:
            reply: Reply = await self._send(lambda handle: handle.wait.remote(ticket))
        except KeyError:
            raise HostLost(self._name, "it was restarted while the call was under way") from None
        return reply

    async def inspect(self, operation: str, arguments: dict[str, Any]) -> Any:
        return await self._send(lambda handle: handle.inspect.remote(operation, arguments))

    async def _send(self, send: Callable[[ActorHandle], Awaitable[Any]]) -> Any:
        handle = self._handle or await self._find()
        self._handle = handle
        try:
            return await send(handle)
        except ActorDiedError as died:
            if self._handle is handle:
                self._handle = None
            if await self._was_retired(handle._actor_id.hex()):
                raise HostRetired from died
            raise HostLost(self._name, "its host ended") from died
        except RayActorError as lost:
            raise HostLost(self._name, "its host was lost and is restarting") from lost
        except RayTaskError as failed:
            # Ray raises a mixture of its own class and the cause's; callers get the cause itself.
            raise failed.cause from None


def _given(handle: ActorHandle) -> Callable[[], Awaitable[ActorHandle]]:
    async def find() -> ActorHandle:
        return handle

    return find


class RayBackend:
    """Stubs for the objects of a running cluster. Belongs to one event loop."""

    def __init__(self, control: ActorHandle, cluster: Cluster) -> None:
        self._control = control
        self._specs = {durable_class.__name__: ClassSpec(durable_class) for durable_class in cluster.classes}
        self._placement = Placement(cluster)
        self._pool_links = [self._pool_link(number) for number in range(cluster.hosts)]
        self._pool = [Lane(link) for link in self._pool_links]
        self._dedicated: OrderedDict[ObjectId, Lane] = OrderedDict()

    def namespace(self, durable_class: type[Class]) -> Namespace[Class]:
        """All objects of one class.

        Raises:
            KeyError: the cluster was started without this class.
        """
        return Namespace(self, self._specs[durable_class.__name__])

    async def ready(self) -> None:
        """Returns when every part of the pool can run objects. Raises what keeps it from it."""
        try:
            await self._control.ready.remote()
        except RayTaskError as failed:
            raise failed.cause from None

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        return await self._lane(object_id).call(call)

    def send_ref(self, object_id: ObjectId, call: Call) -> ray.ObjectRef[Any]:
        if self._placement.is_dedicated(object_id):
            # Always asked anew: the one that served the last call may have ended since.
            handle = ray.get(self._control.dedicated.remote(object_id), timeout=START_TIMEOUT_S)
        else:
            handle = ray.get_actor(f"host-{self._placement.pool_host(object_id)}", namespace=NAMESPACE)
        reference: ray.ObjectRef[Any] = handle.call.remote(call)
        return reference

    @property
    def hosts(self) -> int:
        return len(self._pool_links)

    async def inspect(self, where: ObjectId | int, operation: str, arguments: dict[str, Any], *, start: bool) -> Any:
        """
        Raises:
            HostLost: it may or may not have been done.
            HostRetired: it has not.
        """
        return await (await self._link(where, start)).inspect(operation, arguments)

    async def _link(self, where: ObjectId | int, start: bool) -> _ActorLink:
        if isinstance(where, int):
            return self._pool_links[where]
        if self._placement.is_dedicated(where):
            if start:
                return self._dedicated_link(where)
            with contextlib.suppress(ValueError):  # it does not live
                handle = await asyncio.to_thread(ray.get_actor, where.key, namespace=where.class_name)
                return _ActorLink(str(where), _given(handle), self._was_retired)
        return self._pool_links[self._placement.pool_host(where)]

    def _lane(self, object_id: ObjectId) -> Lane:
        if not self._placement.is_dedicated(object_id):
            return self._pool[self._placement.pool_host(object_id)]
        lane = self._dedicated.get(object_id)
        if lane is None:
            if len(self._dedicated) >= _LANES_MAX:
                self._dedicated.popitem(last=False)
            lane = self._dedicated[object_id] = Lane(self._dedicated_link(object_id))
        self._dedicated.move_to_end(object_id)
        return lane

    def _pool_link(self, number: int) -> _ActorLink:
        async def find() -> ActorHandle:
            try:
                # Until it answers, the host of that name may be one of an older deployment, about to be ended.
                await self._control.cluster.remote()
            except RayTaskError as failed:
                raise failed.cause from None
            except ActorDiedError:
                pass  # a newer deployment replaced it, and its hosts have the same names
            except RayActorError as restarting:
                raise HostRetired from restarting
            try:
                return await asyncio.to_thread(ray.get_actor, f"host-{number}", namespace=NAMESPACE)
            except ValueError as missing:
                raise HostRetired from missing  # between two deployments; nothing was sent

        return _ActorLink(f"host-{number}", find, self._was_retired)

    def _dedicated_link(self, object_id: ObjectId) -> _ActorLink:
        async def find() -> ActorHandle:
            try:
                return await self._control.dedicated.remote(object_id)
            except RayTaskError as failed:
                raise failed.cause from None
            except RayActorError as restarting:
                raise HostRetired from restarting  # it is the control actor that is away; nothing was sent

        return _ActorLink(str(object_id), find, self._was_retired)

    async def _was_retired(self, actor_id: str) -> bool:
        try:
            return bool(await self._control.was_retired.remote(actor_id))
        except RayActorError:
            return False


def start(cluster: Cluster) -> RayBackend:
    """Starts the hosts of `cluster` on the Ray cluster of this process, or joins them where they run already.

    Any number of processes may call it at once with an equal `cluster`. A different one replaces the hosts.
    """
    name = f"{_CONTROL_PREFIX}{cluster.fingerprint}"
    options: dict[str, Any] = {**_ACTOR_OPTIONS, "name": name, "namespace": NAMESPACE, "max_concurrency": 1000}
    if cluster.host_resource:
        options["resources"] = {cluster.host_resource: 0.001}
    return RayBackend(ray.remote(Control).options(**options).remote(cluster), cluster)


def connect(address: str = "auto") -> RayBackend:
    """Stubs for objects that a running service hosts, from any process on its Ray cluster.

    Args:
        address: of the Ray cluster; used only if this process has not joined one yet.

    Raises:
        ConnectionError: no Ray cluster, or no objects are hosted on it.
        ClassesRefused, SlotOwned: objects would be hosted on it, were it not for this.
    """
    if not ray.is_initialized():
        _allow_loopback(address)
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    refusal: Exception | None = None
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_CONTROL_PREFIX):
            control = ray.get_actor(actor["name"], namespace=NAMESPACE)
            try:
                return RayBackend(control, ray.get(control.cluster.remote(), timeout=START_TIMEOUT_S))
            except RayTaskError as failed:
                refusal = failed.cause  # one deployment that was refused may stand beside one that runs
    if refusal is not None:
        raise refusal
    raise ConnectionError("no durable objects are hosted on this Ray cluster; start the service first")


def _allow_loopback(address: str) -> None:
    """Lets this process join a cluster that listens on 127.0.0.1 alone, as `make run` starts it.

    Ray replaces 127.0.0.1 by the machine's outward address, where such a cluster does not listen, unless told that the
    cluster is of a kind that lives on loopback. It reads the variable once, on import, which has happened here. It also
    sends its user's token only where the cluster was found and not named.
    """
    addresses = services.find_gcs_addresses() if address == "auto" else {address}
    addresses = {os.environ.get("RAY_ADDRESS") or found for found in addresses}
    if any(found.startswith("127.0.0.1:") for found in addresses):
        logging.getLogger("ray").setLevel(logging.ERROR)  # as `ray.init` is told, later; this says what it does
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False

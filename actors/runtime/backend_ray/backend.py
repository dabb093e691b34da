"""How do stubs reach the objects of a running cluster?"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from actors.runtime.backend_ray.door import door_of
from actors.runtime.backend_ray.link import ActorLink, given
from actors.runtime.backend_ray.named import NAMESPACE, START_TIMEOUT_S
from actors.runtime.call import Call, HostRetired, Reply
from actors.runtime.lane import Lane
from actors.runtime.namespace import Class, Namespace
from actors.runtime.object import ClassSpec
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import Cluster, Placement

#: Lanes of dedicated objects that a caller keeps.
_LANES_MAX = 10_000


class RayBackend:
    """Stubs for the objects of a running cluster. Belongs to one event loop."""

    def __init__(self, control: ActorHandle, cluster: Cluster) -> None:
        self._control = control
        self._data_dir = cluster.data_dir
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

    async def _link(self, where: ObjectId | int, start: bool) -> ActorLink:
        if isinstance(where, int):
            return self._pool_links[where]
        if self._placement.is_dedicated(where):
            if start:
                return self._dedicated_link(where)
            with contextlib.suppress(ValueError):  # it does not live
                handle = await asyncio.to_thread(ray.get_actor, where.key, namespace=where.class_name)
                return ActorLink(str(where), door_of(self._data_dir, str(where)), given(handle), self._was_retired)
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

    def _pool_link(self, number: int) -> ActorLink:
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

        return ActorLink(f"host-{number}", door_of(self._data_dir, f"host-{number}"), find, self._was_retired)

    def _dedicated_link(self, object_id: ObjectId) -> ActorLink:
        async def find() -> ActorHandle:
            try:
                return await self._control.dedicated.remote(object_id)
            except RayTaskError as failed:
                raise failed.cause from None
            except RayActorError as restarting:
                raise HostRetired from restarting  # it is the control actor that is away; nothing was sent

        return ActorLink(str(object_id), door_of(self._data_dir, str(object_id)), find, self._was_retired)

    async def _was_retired(self, actor_id: str) -> bool:
        try:
            return bool(await self._control.was_retired.remote(actor_id))
        except RayActorError:
            return False

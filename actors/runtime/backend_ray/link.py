"""How does a process reach one host actor, wherever it is now?

By way of Ray, which knows where it is and whether it lives; and if it is on the same node, then as soon as its door is
found, through that. Should the host be lost, Ray is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from actors.runtime.backend_ray.door import DoorAddress
from actors.runtime.backend_ray.wire import Wire, WireLost
from actors.runtime.call import Call, HostLost, HostRetired, Reply

#: How long a host whose door can't be found is only reached by way of Ray.
LOOK_AGAIN_AFTER_S: Final = 0.5
#: The same for one on another node. It may come to this one only when it is lost.
FAR_AGAIN_AFTER_S: Final = 60.0


class ActorLink:
    """The way to one host actor; finds it, and finds it again after it died for good. Belongs to one event loop."""

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
        self._wire: Wire | None = None
        self._at_door: asyncio.Task[None] | None = None
        self._look_at_s = 0.0
        self._by_ray = 0
        self._none_by_ray = asyncio.Event()
        self._none_by_ray.set()

    async def batch(self, calls: list[Call]) -> list[Reply]:
        wire = self._wire
        if wire is None or wire.is_lost:
            self._look_for_door()
            self._by_ray += 1
            self._none_by_ray.clear()
            try:
                replies: list[Reply] = await self._send(lambda handle: handle.batch.remote(calls))
            finally:
                self._by_ray -= 1
                if not self._by_ray:
                    self._none_by_ray.set()
            return replies
        if self._by_ray:
            # What was sent by the slower way is to arrive first.
            await self._none_by_ray.wait()
        replies = await self._ask(wire, "batch", calls)
        return replies

    async def wait(self, ticket: str) -> Reply:
        wire = self._wire
        try:
            if wire is None or wire.is_lost:
                reply: Reply = await self._send(lambda handle: handle.wait.remote(ticket))
            else:
                reply = await self._ask(wire, "wait", ticket)
        except KeyError:
            raise HostLost(self._name, "it was restarted while the call was under way") from None
        except HostRetired as retired:
            # It ran the call before: what was never run has no ticket.
            raise HostLost(self._name, "its host ended before the reply was collected") from retired
        return reply

    async def inspect(self, operation: str, arguments: dict[str, Any]) -> Any:
        return await self._send(lambda handle: handle.inspect.remote(operation, arguments))

    async def _ask(self, wire: Wire, operation: str, argument: Any) -> Any:
        try:
            return await wire.ask(operation, argument)
        except WireLost:
            handle = self._handle
            if handle is not None and await self._was_retired(handle._actor_id.hex()):
                raise HostRetired from None
            raise HostLost(self._name, "its host was lost and is restarting") from None

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

    def _look_for_door(self) -> None:
        loop = asyncio.get_running_loop()
        if self._at_door is None and self._handle is not None and loop.time() >= self._look_at_s:
            self._at_door = loop.create_task(self._use_door(self._handle))

    async def _use_door(self, handle: ActorHandle) -> None:
        again_after_s = LOOK_AGAIN_AFTER_S
        try:
            with contextlib.suppress(RayError, OSError):
                address: DoorAddress | None = await handle.door.remote()
                if address is None or address.node_id != ray.get_runtime_context().get_node_id():
                    again_after_s = FAR_AGAIN_AFTER_S
                elif self._handle is handle:
                    self._wire = await Wire.to(address)
                    await self._wire.keep()
        finally:
            self._look_at_s = asyncio.get_running_loop().time() + again_after_s
            self._at_door = None


def given(handle: ActorHandle) -> Callable[[], Awaitable[ActorHandle]]:
    async def find() -> ActorHandle:
        return handle

    return find

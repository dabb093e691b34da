"""How does a process reach one host actor, wherever it is now?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from actors.runtime.call import Call, HostLost, HostRetired, Reply


class ActorLink:
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
        except HostRetired as retired:
            # It ran the call before: what was never run has no ticket.
            raise HostLost(self._name, "its host ended before the reply was collected") from retired
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


def given(handle: ActorHandle) -> Callable[[], Awaitable[ActorHandle]]:
    async def find() -> ActorHandle:
        return handle

    return find

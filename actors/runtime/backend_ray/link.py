"""How does a process reach one host actor, wherever it is now?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from actors.runtime.backend_ray.door import Line, connect
from actors.runtime.call import Call, HostLost, HostRetired, Reply


class ActorLink:
    """The way to one host actor; finds it, and finds it again after it died for good.

    Calls go through its door where it is on this machine, and by Ray where not.
    """

    def __init__(
        self,
        name: str,
        door: Path,
        find: Callable[[], Awaitable[ActorHandle]],
        was_retired: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._name = name
        self._door = door
        self._find = find
        self._was_retired = was_retired
        self._handle: ActorHandle | None = None
        self._line: Line | None = None
        self._looking = asyncio.Lock()
        #: Or none that this process can reach. The next host of the name may have one.
        self._has_no_door = False

    async def batch(self, calls: list[Call]) -> list[Reply]:
        replies: list[Reply] = await self._ask(calls, lambda handle: handle.batch.remote(calls))
        return replies

    async def wait(self, ticket: str) -> Reply:
        try:
            reply: Reply = await self._ask(ticket, lambda handle: handle.wait.remote(ticket))
        except KeyError:
            raise HostLost(self._name, "it was restarted while the call was under way") from None
        except HostRetired as retired:
            # It ran the call before: what was never run has no ticket.
            raise HostLost(self._name, "its host ended before the reply was collected") from retired
        return reply

    async def inspect(self, operation: str, arguments: dict[str, Any]) -> Any:
        return await self._send(lambda handle: handle.inspect.remote(operation, arguments))

    async def _ask(self, asked: list[Call] | str, send: Callable[[ActorHandle], Awaitable[Any]]) -> Any:
        """Asks at the host's door, or else by Ray."""
        if self._must_look_for_door():
            # One after another: over two lines, batches could overtake each other.
            async with self._looking:
                if self._must_look_for_door():
                    await self._find_door()
        line, handle = self._line, self._handle
        if line is None:
            return await self._send(send)
        try:
            return await line.ask(asked)
        except HostLost as lost:
            # A ticket is for a call that was run.
            if isinstance(asked, list) and handle is not None and await self._was_retired(handle._actor_id.hex()):
                raise HostRetired from lost
            raise

    def _must_look_for_door(self) -> bool:
        return not self._has_no_door and (self._line is None or not self._line.is_usable)

    async def _find_door(self) -> None:
        try:
            has_door = await self._send(lambda handle: handle.door.remote())
        except HostLost as lost:
            raise HostRetired from lost  # what is to be sent was not
        line = await connect(self._name, self._door) if has_door else None
        if self._line is not None:
            self._line.close()
        self._line, self._has_no_door = line, line is None

    async def _send(self, send: Callable[[ActorHandle], Awaitable[Any]]) -> Any:
        handle = self._handle or await self._find()
        self._handle = handle
        try:
            return await send(handle)
        except ActorDiedError as died:
            if self._handle is handle:
                self._handle, self._has_no_door = None, False
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

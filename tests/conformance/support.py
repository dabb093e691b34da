"""How do these tests speak to objects, wherever they run?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from actors.runtime.call import Call, Reply, pack_arguments
from actors.runtime.namespace import Class, Namespace, Stub
from actors.runtime.object_id import ObjectId

WAIT_S = 20.0
#: Of an alarm that no test waits for, or longer than any: by the clock that only the test moves.
FAR_S = 5_000.0

#: Returns when a condition holds that alarms bring about; fails if it takes too long.
Eventually: TypeAlias = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Backend(Protocol):
    """Objects, in process or on Ray."""

    def namespace(self, durable_class: type[Class]) -> Namespace[Class]: ...

    async def send(self, object_id: ObjectId, call: Call) -> Reply: ...


def call_of(stub: Stub[Any], method: str, *args: Any, request_id: str = "") -> Call:
    """A call as the stub would make it, with a request id of the test's choosing."""
    return stub.id.class_name, stub.id.tenant, stub.id.name, method, pack_arguments(args, {}), request_id, None


async def outcomes_of(*calls: Awaitable[Any]) -> list[Any]:
    """What each of the calls, made together, returned or raised."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns when `holds` does. For what happens elsewhere, and tells nobody."""
    async with asyncio.timeout(WAIT_S):
        while not await holds():
            await asyncio.sleep(0.01)


async def ticks() -> None:
    """Lets everything happen that waits for nothing but its turn in the event loop."""
    for _ in range(30):
        await asyncio.sleep(0)

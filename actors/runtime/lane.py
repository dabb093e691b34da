"""How do many calls share one trip to a host?

An actor call costs its caller much the same however much it carries, so calls to one host ride together: those made in
one turn of the event loop form a batch, and those that come while it is away form the next. An idle lane adds no wait,
and a busy one sends hundreds of calls in one actor call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from actors.runtime.call import PENDING, Call, Reply
from actors.runtime.errors import InvalidArgument

#: One batch away keeps the host busy and the next one growing; a second starts only when much is waiting.
BATCHES_AWAY_MAX = 2
SECOND_BATCH_CALLS_MIN = 64
BATCH_CALLS_MAX = 256
#: A batch takes no more calls once their arguments have reached this.
BATCH_BYTES_MAX = 8 * 1024 * 1024
#: The arguments of one call. A host's own limit is lower; this one is for what lies between.
CALL_BYTES_MAX = 64 * 1024 * 1024
#: Calls that may wait in one lane. The host's own limits come first; this one is for a host that does not answer.
LANE_CALLS_MAX = 20_000


class Link(Protocol):
    """The way to one host. Both raise `HostLost` or `HostRetired` when it went away."""

    async def batch(self, calls: list[Call]) -> list[Reply]: ...

    async def wait(self, ticket: str) -> Reply: ...


class LaneFull(Exception):
    """Too many calls wait for one host."""


class Lane:
    """Carries calls to one host, in the order in which they were made. Belongs to one event loop."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[tuple[Call, asyncio.Future[Reply]]] = deque()
        self._away = 0
        self._flush_soon = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, call: Call) -> Reply:
        """
        Raises:
            HostLost, HostRetired, LaneFull: see `Link`.
            InvalidArgument: the arguments are larger than any object takes.
        """
        if (size_bytes := len(call[4])) > CALL_BYTES_MAX:
            raise InvalidArgument("arguments", f"{size_bytes} bytes", f"must take at most {CALL_BYTES_MAX}")
        if len(self._waiting) >= LANE_CALLS_MAX:
            raise LaneFull
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((call, future))
        if not self._flush_soon and self._may_send():
            self._flush_soon = True
            loop.call_soon(self._flush)
        try:
            reply = await future
        except BaseException:
            # A turn whose commit failed is closed, not cancelled: what it wrote is undone, and it must call nobody.
            future.cancel()
            raise
        if reply[0] == PENDING:
            return await self._link.wait(reply[1])
        return reply

    def _may_send(self) -> bool:
        if self._away == 0:
            return bool(self._waiting)
        return self._away < BATCHES_AWAY_MAX and len(self._waiting) >= SECOND_BATCH_CALLS_MIN

    def _flush(self) -> None:
        self._flush_soon = False
        while self._may_send():
            batch: list[tuple[Call, asyncio.Future[Reply]]] = []
            size_bytes = 0
            while self._waiting and len(batch) < BATCH_CALLS_MAX and size_bytes < BATCH_BYTES_MAX:
                call, future = self._waiting.popleft()
                if future.cancelled():
                    continue  # its caller gave up before it was sent
                batch.append((call, future))
                size_bytes += len(call[4])
            if not batch:
                return
            self._away += 1
            task = asyncio.get_running_loop().create_task(self._send(batch))
            # The loop keeps only a weak reference to a task.
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[tuple[Call, asyncio.Future[Reply]]]) -> None:
        try:
            replies: list[Any] = await self._link.batch([call for call, _ in batch])
            if len(replies) != len(batch):
                raise RuntimeError(f"a host gave {len(replies)} replies to {len(batch)} calls")
        except BaseException as error:  # a cancelled loop must not leave callers waiting
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)
        finally:
            self._away -= 1
            self._flush()

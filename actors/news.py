"""How do turns of one object that wait for something hear of it?

Whoever changes something says so; whoever waits looks again then, and only then. What is looked at is the object's own
state: nothing is told twice or lost, however many wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class News:
    """For `@interleaved` methods. Lives no longer than the object's instance, which stays while anybody waits."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        #: Made for the first who waits: most have nobody.
        self._told: asyncio.Event | None = None

    def tell(self) -> None:
        """Has those look again who wait now. They do when what was written is durable, not before."""
        if self._told is not None:
            self._told.set()
            self._told.clear()

    async def until(self, happened: Callable[[], bool], wait_s: float) -> None:
        """Returns when it has happened, or after `wait_s`."""
        if not wait_s > 0:
            return
        told = self._told = self._told or asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                # Nothing runs between the look and the wait.
                while not happened():
                    await told.wait()

"""Whose turn is it to ask for a bucket, among clients that were not here of late?

The first request of a client makes its bucket a file, or opens it: a hundred times the work of those that follow, done
by a host that others wait for. So of those that were not seen lately only few are asked for at once; they wait for each
other, here, and clients that are known wait for hardly any of them. Nobody is refused for being new, unless so many
wait that they would take the places of those who are known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from actors import ObjectOverloaded, TokenBucket

#: Of one process. More would be had sooner, and whoever is known would have to share the processor with them.
AT_ONCE_MAX = 1
#: Clients that wait, each mostly with one request. Half of what a process takes at once is left to those it knows.
WAITING_MAX = 250
RETRY_AFTER_S = 1.0
#: Clients that are known, in two halves: once the newer one is full it becomes the older, which is forgotten.
KNOWN_MAX = 20_000


class Strangers:
    """
    Args:
        at_once_max: how many new clients may be asked for at once.
        known_max: how many clients are known at most.
        waiting_max: how many clients may wait.
    """

    def __init__(
        self, at_once_max: int = AT_ONCE_MAX, known_max: int = KNOWN_MAX, waiting_max: int = WAITING_MAX
    ) -> None:
        #: How many requests of each client wait.
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._waiting_max = waiting_max
        self._turns = asyncio.Semaphore(at_once_max)
        self._half_max = known_max // 2
        self._newer: set[tuple[str, str]] = set()
        self._older: set[tuple[str, str]] = set()

    def is_known(self, tenant: str, client: str) -> bool:
        """It was met of late."""
        key = (tenant, client)
        if key in self._newer:
            return True
        if key in self._older:
            self._meet(key)
            return True
        return False

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, client: str) -> AsyncIterator[None]:
        """Waits for those before it; it is known when it is left without an error.

        Raises:
            ObjectOverloaded: too many wait.
        """
        key = (tenant, client)
        if key not in self._waiting and len(self._waiting) >= self._waiting_max:
            raise ObjectOverloaded(f"{TokenBucket.__name__}/{tenant}:{client}", "many new clients wait", RETRY_AFTER_S)
        self._waiting[key] += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        try:
            yield
        finally:
            self._turns.release()
        self._meet(key)

    def _meet(self, key: tuple[str, str]) -> None:
        if len(self._newer) >= self._half_max:
            self._older, self._newer = self._newer, set()
        self._newer.add(key)

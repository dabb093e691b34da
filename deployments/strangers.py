"""Whose turn is it to ask for a bucket, among clients that were not here of late?

The first request of a client makes its bucket a file, or opens it: a hundred times the work of those that follow, done
by a host that others wait for. So of those that were not seen lately only few are asked for at once; they wait for each
other, here, and clients that are known wait for hardly any of them. Nobody is refused for being new, unless so many
wait that they would take the places of those who are known.

Tenants take turns, and where all places are taken the newest client of the tenant that has most of them gives way to
one of a tenant that has fewer: however many new clients one of them has, there is room for another's, which come next.
A host that hangs has the turn for a moment only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from deployments.errors import TooManyNewClients

#: Of one process. More would be had sooner, and whoever is known would have to share the processor with them.
AT_ONCE_MAX = 1
#: Clients that wait, each mostly with one request. Half of what a process takes at once is left to those it knows.
WAITING_MAX = 250
RETRY_AFTER_S = 1.0
#: A file is made in less. Whoever takes longer waits for a host that is busy, starts or hangs, and others may have
#: buckets in one that does not.
TURN_MAX_S = 0.25
#: Clients that are known, in two halves: once the newer one is full it becomes the older, which is forgotten.
KNOWN_MAX = 20_000


class _Waiter(NamedTuple):
    client: str
    its_turn: asyncio.Future[None]


class Strangers:
    """
    Args:
        at_once_max: how many new clients may be asked for at once.
        known_max: how many clients are known at most.
        waiting_max: how many clients may wait.
        turn_max_s: after that the next one need not wait for this one any more.
    """

    def __init__(
        self,
        at_once_max: int = AT_ONCE_MAX,
        known_max: int = KNOWN_MAX,
        waiting_max: int = WAITING_MAX,
        turn_max_s: float = TURN_MAX_S,
    ) -> None:
        #: How many requests of each client wait, by tenant.
        self._waiting: dict[str, Counter[str]] = {}
        self._waiting_max = waiting_max
        self._turn_max_s = turn_max_s
        #: Turns that nobody has.
        self.free = at_once_max
        #: Those who wait, by tenant: the first of the first tenant is next.
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
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
    async def turn(self, tenant: str, client: str, within_s: float | None = None) -> AsyncIterator[None]:
        """Waits for those before it; it is known when it is left without an error.

        Raises:
            TooManyNewClients: too many wait, or its turn did not come `within_s`.
        """
        await self._begin(tenant, client, within_s)
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._next()

        timer = asyncio.get_running_loop().call_later(self._turn_max_s, end)
        try:
            yield
        finally:
            timer.cancel()
            end()
        self._meet((tenant, client))

    async def _begin(self, tenant: str, client: str, within_s: float | None) -> None:
        if self.free:
            self.free -= 1
            return
        clients = self._waiting.setdefault(tenant, Counter())
        if client not in clients and sum(map(len, self._waiting.values())) >= self._waiting_max:
            self._make_room(tenant)
        clients[client] += 1
        its_turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(_Waiter(client, its_turn))
        try:
            async with asyncio.timeout(within_s):
                await its_turn
        except BaseException as error:
            if its_turn.done() and not its_turn.cancelled() and its_turn.exception() is None:
                self._next()  # it came too late
            if isinstance(error, TimeoutError):
                raise TooManyNewClients(RETRY_AFTER_S) from None
            raise
        finally:
            clients[client] -= 1
            if not clients[client]:
                del clients[client]
            self._tidy(tenant)

    def _next(self) -> None:
        """Gives a turn that has ended to who is next: tenants in turns."""
        while self._queues:
            tenant, queue = next(iter(self._queues.items()))
            its_turn = queue.popleft().its_turn
            if queue:
                self._queues.move_to_end(tenant)
            else:
                del self._queues[tenant]
            if not its_turn.done():
                its_turn.set_result(None)
                return
        self.free += 1

    def _make_room(self, tenant: str) -> None:
        """Refuses the newest client of the tenant that has most waiting, if this one's would have fewer with another.

        Raises:
            TooManyNewClients: it would not.
        """
        most = max(self._waiting, key=lambda one: len(self._waiting[one]))
        if len(self._waiting[most]) <= len(self._waiting[tenant]) + 1:
            self._tidy(tenant)
            raise TooManyNewClients(RETRY_AFTER_S)
        waiting = [waiter for waiter in self._queues.get(most, ()) if not waiter.its_turn.done()]
        for waiter in waiting:
            if waiter.client == waiting[-1].client:
                waiter.its_turn.set_exception(TooManyNewClients(RETRY_AFTER_S))

    def _tidy(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def _meet(self, key: tuple[str, str]) -> None:
        if len(self._newer) >= self._half_max:
            self._older, self._newer = self._newer, set()
        self._newer.add(key)

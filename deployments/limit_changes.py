"""How do changes of limits, and resets, reach every process that lets clients in, or begins turns for them?

Each of them listens to the service's `LimitNews`, and looks at the tenants' files every two seconds. What it hears
takes effect before it asks for more, so that `announce` returns when a change holds in all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from actors import DurableError, LimitNews, Objects
from actors.limit_news import LEASE_S, NEWS_NAME, NEWS_TENANT, POLL_WAIT_MAX_S
from actors.runtime import ObjectReset
from deployments.live_limits import LiveLimits
from deployments.tenant_files import Standing, TenantFiles

logger = logging.getLogger("mobula.limits")

LOOK_EVERY_S = 2.0
#: Between two tries to hear of news.
PAUSE_S = 0.5
#: After as many polls every reader has heard of something, or is known not to act on what it remembers.
HEARD_TRIES_MAX = int(LEASE_S / POLL_WAIT_MAX_S) + 2


class Remembers(Protocol):
    """What knows something of clients that the news may make untrue."""

    def certain_until(self, until_s: float) -> None: ...

    def forget(self, tenant: str, client: str) -> None: ...

    def clear(self) -> None: ...


class LimitChanges:
    """
    Args:
        objects: where the news are.
        files: what the limits are written in.
        limits: what they are replaced in.
        memories: what is known of clients, to be forgotten.
        reader: a name that no other process has.
        monotonic: seconds, of a clock that nobody sets.
        sleep: waits.
    """

    def __init__(
        self,
        objects: Objects,
        files: TenantFiles,
        limits: LiveLimits,
        memories: Sequence[Remembers],
        *,
        reader: str,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._news = objects.namespace(LimitNews).get(NEWS_TENANT, NEWS_NAME)
        self._files = files
        self._limits = limits
        self._memories = memories
        self._reader = reader
        self._monotonic = monotonic
        self._sleep = sleep
        self._looking = asyncio.Lock()
        #: Whether the news know which policies there are.
        self._are_known = False

    # -- telling

    async def announce(self, tenant: str = "", client: str = "") -> None:
        """Returns when every process has forgotten what it knew of a client, or, without one, has read the files again.

        Raises:
            DurableError: it is not certain that they have.
        """
        number = await self._news.tell(tenant, client)
        for _ in range(HEARD_TRIES_MAX):
            if await self._news.heard(number):
                return
        raise ObjectReset(f"{LimitNews.__name__}/{NEWS_TENANT}:{NEWS_NAME}", "not all processes have heard of it")

    # -- hearing

    async def listen(self) -> None:
        """Hears of news for as long as it runs."""
        after: int | None = None
        while True:
            try:
                after = await self.hear(after)
            except DurableError as error:
                logger.warning("the news of limits are not reached: %s", error)
                await self._sleep(PAUSE_S)

    async def hear(self, after: int | None) -> int:
        """One poll: what was told after number `after` takes effect. Returns the number to go on from."""
        sent_s = self._monotonic()
        page = await self._news.poll(self._reader, after)
        if after is None or page["missed"]:
            self._clear()
        if page["missed"] or any(not told["tenant"] for told in page["told"]):
            await self.look()
        for memory in self._memories:
            for told in page["told"]:
                memory.forget(told["tenant"], told["client"])
            memory.certain_until(sent_s + LEASE_S)
        return int(page["number"])

    async def watch(self) -> None:
        """Looks at the files for as long as it runs."""
        while True:
            await self.look()
            if not self._are_known:
                await self._make_known()
            await self._sleep(LOOK_EVERY_S)

    async def look(self) -> Standing:
        """Takes over what the files say of limits. Returns what they say that can't be taken over."""
        async with self._looking:
            changed = self._limits.replace(await asyncio.to_thread(self._files.look))
            standing = self._files.standing()
            if changed:
                self._clear()
                self._are_known = False
                logger.warning("limits have changed of: %s", ", ".join(changed))
        return standing

    async def _make_known(self) -> None:
        self._are_known = True  # unless they change meanwhile
        try:
            await self._news.know(self._limits.policies())
        except DurableError as error:
            self._are_known = False
            logger.warning("the news of limits are not told of policies: %s", error)

    def _clear(self) -> None:
        for memory in self._memories:
            memory.clear()

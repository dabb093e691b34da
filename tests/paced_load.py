"""How many requests of one client does the service admit, when more come than its bucket pays for?

An open loop: requests are sent when they are due, whether or not the ones before have been answered. Many connections
share the bucket. What may be admitted is known from the moments of sending and hearing alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from tests.integration.conftest import Service

#: Of what a bucket may give, by which fewer may be admitted; one token is always within it.
MISSED_SHARE_MAX = 0.01


@dataclass(kw_only=True, slots=True)
class Load:
    """A crowd, and what came of it. Times are of one clock: when each request was sent and its answer was heard."""

    capacity: float
    refill_per_second: float
    statuses: Counter[int] = field(default_factory=Counter)
    spans_s: list[tuple[float, float]] = field(default_factory=list)

    @property
    def admitted(self) -> int:
        return self.statuses[200]

    @property
    def most(self) -> float:
        """What the bucket held, and what can have come between the first request and the last answer."""
        sent_s, heard_s = min(sent for sent, _ in self.spans_s), max(heard for _, heard in self.spans_s)
        return self.capacity + self.refill_per_second * (heard_s - sent_s)

    @property
    def least(self) -> float:
        """What it must have given between the first answer and the last request."""
        heard_s, sent_s = min(heard for _, heard in self.spans_s), max(sent for sent, _ in self.spans_s)
        whole = self.capacity + self.refill_per_second * (sent_s - heard_s)
        return whole - self.overflowed - max(1.0, whole * MISSED_SHARE_MAX)

    @property
    def overflowed(self) -> float:
        """What came while it was full, where a machine that stalls has fewer requests decided than pay for it.

        As if each had paid when its answer was heard, which is after it did. Nothing, where none waits.
        """
        heard_s = sorted(heard for _, heard in self.spans_s)
        tokens, overflowed = self.capacity, 0.0
        for before_s, now_s in zip(heard_s[:1] + heard_s, heard_s, strict=False):
            tokens += self.refill_per_second * (now_s - before_s)
            overflowed += max(0.0, tokens - self.capacity)
            tokens = min(tokens, self.capacity)
            tokens -= tokens >= 1.0
        return overflowed

    async def run(
        self,
        service: Service,
        key: str,
        client: str,
        *,
        rate: float,
        clients: int,
        for_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sends `rate` checks a second, from so many clients in turns that each have a connection, with one bucket."""
        headers = {"Authorization": f"Bearer {key}", "x-client": client}
        url = f"{service.url}/ratelimit/check"
        unlimited = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=unlimited, headers=headers, timeout=aiohttp.ClientTimeout(60)) as http,
            asyncio.TaskGroup() as requests,
        ):

            async def request() -> None:
                sent_s = now()
                async with http.post(url) as answer:
                    await answer.read()
                    self.spans_s.append((sent_s, now()))
                    self.statuses[answer.status] += 1

            began_s = now()

            async def client_in_turn(number: int) -> None:
                for turn in range(number, round(rate * for_s), clients):
                    await asyncio.sleep(max(0.0, began_s + turn / rate - now()))
                    requests.create_task(request())

            for number in range(clients):
                requests.create_task(client_in_turn(number))
